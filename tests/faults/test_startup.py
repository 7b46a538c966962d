"""Errors before the first step: the run folder, the rendezvous, the other job."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from pretrain.distributed.rank import Rank, detect
from pretrain.distributed.startup import identity, meet
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import SetupError
from tests.command import Commands
from tests.faults.job import checkpoint_steps, job
from tests.integration.small_run import free_port, pretrain, verdict
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


@pytest.mark.parametrize("settings", [["cluster.device=cuda"], ["cluster.device_memory_gib=79"]])
def test_a_config_for_gpus_does_not_train_on_the_cpu(
    command: Commands, digits: None, tmp_path: Path, settings: list[str]
) -> None:
    done = command.run(*pretrain("alone", tmp_path, *settings))
    assert done.returncode == 2 and "error: no usable GPU on" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


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


MEETING = """
import sys
from pretrain.distributed import startup
from pretrain.distributed.collectives import all_gather_rows
from pretrain.distributed.rank import detect
from pretrain.errors import UserError
import torch
import torch.distributed as dist
rank = detect()
try:
    startup.start(rank, timeout_s=60)
except UserError as error:
    print(error)
    raise SystemExit(error.exit_code)
print("joined", flush=True)
sys.stdin.readline()
print("ranks", all_gather_rows(torch.tensor([float(rank.rank)])).tolist(), flush=True)
startup.leave()  # as every stage does: torch may abort at the exit of a process that is still in its group
"""


class Ranks:
    """Two ranks of one job by hand, on a given port; each waits for a line before its first collective."""

    def __init__(self, command: Commands, port: int, *words: str) -> None:
        self.processes = [
            command.start(
                "python", "-c", MEETING, *words, stdin=subprocess.PIPE,
                env={"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": str(port), "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]  # fmt: skip

    def joined(self) -> list[str]:
        return [process.stdout.readline().strip() for process in self.processes if process.stdout is not None]

    def finish(self) -> list[tuple[int, str]]:
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()
        ended = [process.communicate(timeout=240) for process in self.processes]
        return [(process.returncode, out) for process, (out, _) in zip(self.processes, ended, strict=True)]


@pytest.mark.parametrize("same", [False, True])
def test_two_jobs_on_one_port(command: Commands, same: bool) -> None:
    """The second one is refused by name, also where it is the same command again; the first one continues."""
    port = free_port()
    first = Ranks(command, port, "name=a")
    assert first.joined() == ["joined", "joined"]
    second = Ranks(command, port, "name=a" if same else "name=b")
    refused = second.finish()
    assert [code for code, _ in refused] == [2, 2], refused
    assert all(str(port) in text and "--master_port" in text for _, text in refused)
    assert "belongs to another job" in refused[1][1] and "name=a" in refused[1][1]
    assert f"process {first.processes[0].pid} " in refused[1][1]
    assert first.finish() == [(0, "ranks [0.0, 1.0]\n")] * 2


@pytest.mark.parametrize(("port", "words"), [("99999", "is not a port"), ("none", "is not a port")])
def test_a_port_that_is_none(monkeypatch: pytest.MonkeyPatch, port: str, words: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(SetupError, match=words):
        meet(Rank(1, 1, 2, 2, "here", "deepspeed"), 5, 5)


def test_the_identity_is_the_command_without_what_differs_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*words: str) -> str:
        monkeypatch.setattr("sys.argv", list(words))
        return identity()

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert of("/x/run.py", "--local_rank=0", "name=a") == of("/y/run.py", "--local_rank", "1", "name=a")
    assert of("run.py", "name=a") != of("run.py", "name=b")
    before = of("run.py", "name=a")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert of("run.py", "name=a") != before


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
    deadline = time.monotonic() + 240
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    second = command.run(*words)
    assert (
        second.returncode == 2 and "is in use by job local" in second.stderr and f"process {first.pid}" in second.stderr
    )
    assert first.poll() is None
    (tmp_path / "run/STOP").touch()
    first.communicate(timeout=240)
    assert verdict(tmp_path / "run")["outcome"] == "requeue"
