"""The job scripts on a real Slurm, with a tiny model on CPU ranks: a job looks after itself until it is done."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pretrain.telemetry.metrics import read_metrics
from tests.integration.small_run import curve, verdict
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import STEPS, frozen, is_stopped, pretrain, rank_pids, reached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ended(cluster: Cluster, job: str) -> tuple[str, str, str]:
    """(state, exit code, restarts) at the end of a job."""
    record = cluster.wait(job, timeout_s=600)
    return record["JobState"], record["ExitCode"], record["Restarts"]


def assert_as_straight(run: Path, straight: Path) -> None:
    """Every step's loss, gradient norm, learning rate and samples are bit-identical."""
    assert verdict(run)["outcome"] == "complete"
    assert curve(run) == curve(straight)


def test_two_nodes(straight: Path) -> None:
    """One task per GPU on each node, a rendezvous without ssh, and a log that reads well."""
    log = (straight.parent / "log.txt").read_text()
    assert sorted(curve(straight)) == list(range(1, STEPS + 1))
    assert re.search(r"job \d+, start 1: 2 ranks on 2 of 2 nodes \(node1, node2\), from step 0", log)
    assert "preflight: 2 nodes are fit" in log
    assert log.rstrip().endswith(f"==== complete at step {STEPS}: all steps done"), log
    hosts = {path.name: path.read_text() for path in (straight / "heartbeats").iterdir()}
    assert "node1" in hosts["node-00000.json"] and "node2" in hosts["node-00001.json"]
    report = (straight / "preflight" / "report.json").read_text()
    for probe in ("gpus", "memory", "space", "shared_folder", "shards", "clock", "gemm", "all_reduce"):
        assert f'"{probe}"' in report


def test_time_limit(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """Before the time ends: signal → checkpoint → requeue → completion, with the curve of the straight run."""
    job = pretrain(cluster, tmp_path, options=("--time=60", "--signal=USR1@120"))
    with frozen(cluster, job, tmp_path, 2, at_step=5) as pids:
        minutes = 2 + int(cluster.show(job)["RunTime"].split(":")[1])  # between 60 and 120 s are left
        cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        # Slurm looks at time limits every 30 s
        cluster.until(lambda: not any(map(is_stopped, pids)), "the signal", job, timeout_s=90)
    cluster.until(lambda: cluster.show(job)["JobState"] == "PENDING", "the requeue", job)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert "queued" in cluster.run("python", "-m", "pipelines", "status", tmp_path / "run").stdout
    assert ended(cluster, job) == ("COMPLETED", "0:0", "1"), cluster.log(job)
    assert re.search(r"==== requeue at step \d+: stopped on request \(signal SIGUSR1\)\nrequeued\n", cluster.log(job))
    assert min(read_metrics(tmp_path / "run/metrics.jsonl", "resume")) >= 5
    assert_as_straight(tmp_path / "run", straight)


def test_preemption(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """A job of a higher partition takes the nodes; ours saves, gives way, and comes back."""
    job = pretrain(cluster, tmp_path)
    with frozen(cluster, job, tmp_path, 2, at_step=5) as pids:
        urgent = cluster.submit("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 2")
        cluster.until(lambda: not any(map(is_stopped, pids)), "the signal", job, timeout_s=60)
    assert ended(cluster, urgent)[0] == "COMPLETED"
    assert ended(cluster, job) == ("COMPLETED", "0:0", "1"), cluster.log(job)
    assert_as_straight(tmp_path / "run", straight)


def test_a_node_fails_and_the_job_continues_on_fewer(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """4 nodes → 3, whose 6 GPUs do not fit the batch: the largest number that does; the log names the idle rest."""
    job = pretrain(cluster, tmp_path, nodes="3-4", options=("--ntasks-per-node=2", "--gpus-per-node=2"))
    with frozen(cluster, job, tmp_path, 8, at_step=9):
        cluster.run("scontrol", "update", "NodeName=node4", "State=DOWN", "Reason=test")
        cluster.run("scontrol", "update", "NodeName=node4", "State=DRAIN", "Reason=test")  # its daemon lives: stay away
        cluster.until(lambda: len(starts.starts(tmp_path / "run")) == 2, "the restart", job)
    cluster.run("scontrol", "update", "NodeName=node4", "State=RESUME")
    assert ended(cluster, job) == ("COMPLETED", "0:0", "0"), cluster.log(job)
    log = cluster.log(job)
    assert re.search(r"start 2: 4 ranks on 2 of 2 nodes \(node1, node2\), from step \d", log), log
    assert "4 ranks instead of 8: a step takes about 2 × as long" in log
    ours, theirs = curve(tmp_path / "run"), curve(straight)
    assert sorted(ours) == sorted(theirs)
    for step, (loss, _, lr, digest) in ours.items():
        assert (lr, digest) == theirs[step][2:], step
        assert loss == pytest.approx(theirs[step][0], rel=1e-5), step


def test_no_progress_gives_up(cluster: Cluster, tmp_path: Path) -> None:
    """Ranks that cannot reach each other crash before the first checkpoint, each time."""
    env = {"MAX_RESTARTS_WITHOUT_PROGRESS": "1", "GLOO_SOCKET_IFNAME": "nosuch0"}
    job = pretrain(cluster, tmp_path, env=env)
    assert ended(cluster, job) == ("FAILED", "75:0", "0"), cluster.log(job)
    assert cluster.log(job).rstrip().endswith("gave up: 1 restarts in a row without a newer checkpoint than step 0")
    status = cluster.run("python", "-m", "pipelines", "status", tmp_path / "run").stdout
    assert "crashed" in status and "last error" in status and "could not join" in status, status


def test_fatal_is_not_requeued(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """A change that decides the result is found when the checkpoint is read: said, and not tried again."""
    shutil.copytree(straight, tmp_path / "run")
    job = pretrain(cluster, tmp_path, "optim.lr=7e-4", nodes="1")
    assert ended(cluster, job) == ("FAILED", "2:0", "0"), cluster.log(job)
    last = cluster.log(job).rstrip().rpartition("==== ")[2]
    assert last.startswith("fatal at step") and "optim.lr: 0.001 → 0.0007" in last, last
    status = cluster.run("python", "-m", "pipelines", "status", tmp_path / "run").stdout
    assert "fatal" in status and "optim.lr: 0.001 → 0.0007" in status


def test_what_is_cancelled_stays_away(cluster: Cluster, tmp_path: Path) -> None:
    job = pretrain(cluster, tmp_path, "duration=100_000 steps", nodes="1")
    cluster.until(lambda: reached(tmp_path / "run", 3), "step 3", job)
    cluster.run("scancel", job)
    assert ended(cluster, job)[0] == "CANCELLED"
    cluster.until(lambda: "not requeued by this job" in cluster.log(job) or not rank_pids(tmp_path), "its end", job)
    time.sleep(8)  # longer than a requeue takes
    assert cluster.show(job)["JobState"] == "CANCELLED" and len(starts.starts(tmp_path / "run")) == 1


def driver(cluster: Cluster, script: str) -> dict[str, str]:
    """The environment of nodes whose nvidia-smi is this shell script."""
    path = cluster.folder / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"RUN_DEVICE": "gpu", "PATH": f"{path.parent}:{os.environ['PATH']}"}


def test_a_bad_node_is_named_and_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """The driver of node1 shows no GPU: it is named before anything trains, and the job returns without it."""
    env = driver(cluster, '[ "$(hostname)" = node1 ] || echo "NVIDIA A100-SXM4-80GB, 81920, 3"')
    job = pretrain(cluster, tmp_path, "duration=2 steps", "optim.schedule.warmup=1 steps", env=env)
    assert ended(cluster, job) == ("COMPLETED", "0:0", "1"), cluster.log(job)
    log = cluster.log(job)
    assert "preflight: error: node1: gpus: 1 GPUs needed, the driver shows none" in log, log
    assert "requeued without node1" in log and "(node2, node3)" in log
    assert "node1" in cluster.show(job)["ExcNodeList"]


def test_what_is_wrong_everywhere_is_fatal(cluster: Cluster, tmp_path: Path) -> None:
    """No node has a GPU: other nodes would not help, and no torch is started to find it out."""
    job = pretrain(cluster, tmp_path, env=driver(cluster, "exit 0"))
    assert ended(cluster, job) == ("FAILED", "2:0", "0"), cluster.log(job)
    last = cluster.log(job).rstrip().splitlines()[-1]
    assert last.startswith("==== fatal at step 0: on every node: node1: gpus: 1 GPUs needed, the driver shows"), last
    assert "fatal" in cluster.run("python", "-m", "pipelines", "status", tmp_path / "run").stdout


SHOW_GPU = """
import os
visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
own = visible[0] if len(visible) == 1 else visible[int(os.environ["LOCAL_RANK"])]
print("GPU", os.environ["SLURMD_NODENAME"], own, "of", len(visible), flush=True)
"""


@pytest.mark.parametrize(
    ("asked", "step", "visible"),
    [
        (["--gpus-per-node=4"], "", 4),  # as the job scripts ask
        (["--gpus-per-task=1"], "", 1),
        (["--gpus-per-node=4"], "--gpus-per-task=1", 1),  # SRUN_OPTIONS of the site file
    ],
)
def test_every_rank_has_a_gpu_of_its_own(
    cluster: Cluster, tmp_path: Path, asked: list[str], step: str, visible: int
) -> None:
    site = tmp_path / "site.sh"
    site.write_text(f"{cluster.site.read_text()}\nSRUN_OPTIONS=({step})\n")
    script = tmp_path / "job.sh"
    show = shlex.quote(SHOW_GPU)
    script.write_text(
        "#!/usr/bin/env bash\nset -uo pipefail\nsource slurm/lib/job.sh\nenter_repository\nload_site\n"
        f"run_step --ntasks=8 --ntasks-per-node=4 -- -c {show}\nexit $STEP_CODE\n"
    )
    size = ["--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=1"]
    job = cluster.submit(*size, *asked, script, env={"SITE_FILE": str(site)})
    assert ended(cluster, job) == ("COMPLETED", "0:0", "0"), cluster.log(job)
    lines = [line.split() for line in cluster.log(job).splitlines() if line.startswith("GPU ")]
    assert len({(node, gpu) for _, node, gpu, _, _ in lines}) == len(lines) == 8, lines
    assert {int(count) for *_, count in lines} == {visible}, lines
