"""What can be wrong before the first step: the run folder, the rendezvous, the other job."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pretrain.distributed.rank import detect
from pretrain.engine.run_folder import RunFolder
from tests.command import Commands
from tests.faults.job import checkpoint_steps, job
from tests.integration.small_run import pretrain, verdict
from tests.pool import Pool, RankFailureError


def open_own_folder(base: str) -> None:
    """Every rank opens a folder of its own, as on nodes that share nothing."""
    rank = detect()
    RunFolder(Path(base) / f"node{rank.rank}").open(rank, ("local", 0))


def test_a_rank_that_does_not_see_the_run_folder(pool2: Pool, tmp_path: Path) -> None:
    with pytest.raises(RankFailureError) as caught:
        pool2.run(open_own_folder, str(tmp_path))
    failures = caught.value.failures
    assert {rank: failure.kind for rank, failure in failures.items()} == {0: "PeerError", 1: "SetupError"}
    assert "does not see the run folder" in failures[1].text and "all nodes share" in failures[1].text


JOIN = """
from pretrain.distributed import startup
from pretrain.distributed.rank import detect
from pretrain.errors import UserError
try:
    startup.start(detect(), timeout_s=20)
except UserError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def test_a_rendezvous_port_in_use(command: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        refused = command.run("python", "-c", JOIN, env=env | {"PYTHONPATH": os.getcwd()})
    assert refused.returncode == 2, refused.stderr
    assert f"could not join its peers at 127.0.0.1:{port}" in refused.stdout and "--master_port" in refused.stdout
    assert "Traceback" not in refused.stderr


def test_a_setting_that_is_missing_or_changed_on_resume(digits: None, pool1: Pool, tmp_path: Path) -> None:
    short = ["duration=4 steps"]
    assert pool1.run(job, str(tmp_path), [*short, "optim.clip_grad=0.5"])[0]["outcome"] == "complete"
    missing = pool1.run(job, str(tmp_path), [*short, "optim.clip_grad=null"])[0]
    assert missing["outcome"] == "ConfigError" and "optim.clip_grad: 0.5 → None" in missing["reason"]
    changed = pool1.run(job, str(tmp_path), [*short, "optim.clip_grad=0.5", "seed=7"])[0]
    assert changed["outcome"] == "ConfigError" and "seed: 0 → 7" in changed["reason"]
    assert checkpoint_steps(tmp_path / "run") == [4]


@pytest.mark.slow
def test_a_second_job_is_refused_while_the_first_lives(command: Commands, digits: None, tmp_path: Path) -> None:
    import time

    words = pretrain("alone", tmp_path, "duration=100_000 steps", "checkpoint.every=100_000 steps")
    first = command.start(*words)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    second = command.run(*words)
    assert (
        second.returncode == 2 and "is in use by job local" in second.stderr and f"process {first.pid}" in second.stderr
    )
    assert first.poll() is None
    (tmp_path / "run/STOP").touch()
    first.communicate(timeout=120)
    assert verdict(tmp_path / "run")["outcome"] == "requeue"
