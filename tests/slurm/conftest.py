"""One Slurm for all tests of the session, and the words of a small training on it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.integration.conftest import digits
from tests.integration.small_run import PRETRAIN
from tests.slurm.cluster import Cluster, missing

__all__ = ["digits"]

STEPS, SAVED_EVERY = 48, 8
TINY = [
    "model.variant=mu/2",
    f"duration={STEPS} steps",
    "optim.lr=1e-3",
    "optim.schedule.warmup=3 steps",
    "evaluation.every=null",
    f"checkpoint.every={SAVED_EVERY} steps",
    "telemetry.log_every=1",
    "telemetry.tensorboard=false",
    "cluster.num_workers=0",
]
ONE_GPU = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
# A user's site file, for nodes whose GPUs are only files. The environment of sbatch goes before it.
SITE = f"""\
export RUN_PYTHON={sys.executable}
export RUN_DEVICE=${{RUN_DEVICE:-cpu}} PREFLIGHT=${{PREFLIGHT:-light}}
export MAX_RESTARTS_WITHOUT_PROGRESS=${{MAX_RESTARTS_WITHOUT_PROGRESS:-3}}
export DS_ACCELERATOR=cpu TORCHDYNAMO_DISABLE=1
unset CUDA_VISIBLE_DEVICES
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, started once; tests are skipped, with the reason, where there can be none."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    cluster.site.write_text(SITE)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(slurm: Cluster, digits: None) -> Iterator[Cluster]:
    """The cluster with nothing on it."""
    yield slurm
    slurm.cancel_all()


@pytest.fixture(scope="session")
def straight(slurm: Cluster, digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two nodes that nothing happens to, with every probe of the preflight."""
    folder = tmp_path_factory.mktemp("straight")
    job = pretrain(slurm, folder, env={"PREFLIGHT": "full"})
    record = slurm.wait(job)
    assert (record["JobState"], record["ExitCode"]) == ("COMPLETED", "0:0"), slurm.log(job)
    (folder / "log.txt").write_text(slurm.log(job))
    return folder / "run"


def pretrain(
    cluster: Cluster,
    folder: Path,
    *settings: str,
    nodes: str = "2",
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> str:
    """Submits the script that users submit, for a tiny model, into ``folder/run``; returns the job id."""
    script = ["slurm/pretrain_vit_h.sh", PRETRAIN, *TINY, f"output_dir={folder}", "name=run", *settings]
    settings_of_env = {"CLUSTER": "configs/cluster/cpu.yaml", **(env or {})}
    return cluster.submit(f"--nodes={nodes}", *ONE_GPU, *options, *script, env=settings_of_env)


def reached(run: Path, step: int) -> bool:
    """Whether the run has told of ``step``."""
    return max(read_metrics(run / "metrics.jsonl"), default=0) >= step


def rank_pids(folder: Path) -> list[int]:
    """The processes that train into ``folder``, as this side of the namespaces numbers them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        is_rank = "python" in words[0] and "supervise" not in words
        if is_rank and "pretrain/run.py" in words and f"output_dir={folder}" in words:
            found.append(int(entry.name))
    return found


@contextmanager
def frozen(cluster: Cluster, job: str, folder: Path, ranks: int, at_step: int) -> Iterator[list[int]]:
    """Stops the ranks' time as soon as they have done ``at_step`` steps: what follows finds them in the middle.

    Checkpoints due before that step are complete: they are written while the run continues.
    """
    pids = cluster.until(lambda: found if len(found := rank_pids(folder)) == ranks else None, f"{ranks} ranks", job)
    cluster.until(lambda: reached(folder / "run", at_step), f"step {at_step}", job, every_s=0.02)
    saved = at_step // SAVED_EVERY * SAVED_EVERY
    if saved:
        complete = folder / "run" / "checkpoints" / f"step-{saved:08d}" / "COMPLETE.json"
        cluster.until(complete.exists, f"the checkpoint of step {saved}", job, every_s=0.02)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert not reached(folder / "run", STEPS), "the run has ended before it could be stopped: give it more steps"
    try:
        yield pids
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue


def is_stopped(pid: int) -> bool:
    """Whether the process is still stopped; Slurm wakes what it sends a signal to."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
