"""Ranks and nodes die, and the job continues in its allocation with the curve of a run that nothing happens to."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pretrain.telemetry.metrics import read_metrics
from tests.integration.small_run import curve, verdict
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ONE_GPU, pretrain, rank_pids, reached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


STEPS = 120
LONG = (f"duration={STEPS} steps", "checkpoint.every=20 steps")


def failures(run: Path) -> list[starts.Failure]:
    """The failures that the job has recorded, in order."""
    return [entry.failure for entry in starts.read(run) if isinstance(entry, starts.End) and entry.failure is not None]


def trains_again(cluster: Cluster, job: str, number: int) -> None:
    """Waits until the step trains for the given time again."""
    cluster.until(lambda: cluster.log(job).count("from the failure to the next step") == number, "the restart", job)


def test_three_failures_cost_seconds_each_and_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """A rank is killed, a node loses its power, a rank freezes: one allocation, and every bit as without them."""
    two_ranks = ("--ntasks-per-node=2", "--gpus-per-node=2")
    undisturbed = pretrain(
        cluster, tmp_path / "undisturbed", *LONG, nodes="1", options=two_ranks, env={"PREFLIGHT": "off"}
    )
    run, env = tmp_path / "run", {"SPARE_NODES": "1", "SILENT_LIMIT_S": "30", "MAX_NODE_FAILURES": "9"}
    job = pretrain(cluster, tmp_path, *LONG, nodes="3", env={**env, "PREFLIGHT": "off"})
    cluster.until(lambda: reached(run, 25), "step 25", job, every_s=0.05)
    os.kill(max(rank_pids(tmp_path)), signal.SIGKILL)
    trains_again(cluster, job, 1)
    node = starts.starts(run)[-1].nodes[-1]  # not the first, which the batch shell runs on
    cluster.kill_node(node)
    trains_again(cluster, job, 2)
    cluster.boot_node(node)
    os.kill(max(rank_pids(tmp_path)), signal.SIGSTOP)
    record = cluster.wait(job, timeout_s=600)
    log = cluster.log(job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("COMPLETED", "0:0", "0"), log
    killed, lost, silent = failures(run)
    assert killed.error == "Killed" and killed.node in cluster.nodes and killed.rank in (0, 1)
    assert (lost.node, lost.rank, lost.error) == (node, None, "the node does not answer")
    assert silent.error == "no heartbeat any more" and silent.rank is not None
    assert node not in starts.starts(run)[2].nodes and len(starts.starts(run)) == 4
    assert cluster.wait(undisturbed, timeout_s=600)["JobState"] == "COMPLETED", cluster.log(undisturbed)
    assert verdict(run)["outcome"] == "complete"
    assert sorted(curve(run)) == list(range(1, STEPS + 1))
    assert curve(run) == curve(tmp_path / "undisturbed" / "run"), (
        "no sample is lost or repeated, and every loss is the same"
    )


def test_only_a_dead_node_is_unreachable(cluster: Cluster, tmp_path: Path) -> None:
    """Also beside a step that holds the job's GPUs; once it has booted, it is reachable again."""
    script = tmp_path / "job.sh"
    script.write_text(PROBE.format(python=sys.executable, folder=tmp_path))
    job = cluster.submit("--nodes=3", *ONE_GPU, "--exclusive", "--no-kill", script)
    dead = cluster.nodes[2]
    for number, change in enumerate((lambda: None, lambda: cluster.kill_node(dead), lambda: cluster.boot_node(dead))):
        change()
        (tmp_path / f"ask-{number}").touch()
        answer = tmp_path / f"answer-{number}"
        cluster.until(answer.exists, "an answer", job)
        assert answer.read_text() == (f"{dead}\n" if number == 1 else "\n"), cluster.log(job)
    assert cluster.wait(job)["JobState"] == "COMPLETED", cluster.log(job)


PROBE = """\
#!/bin/bash
srun --nodes=2 --ntasks=2 --nodelist=node1,node2 sleep 1000 &
for number in 0 1 2; do
    until [ -e {folder}/ask-$number ]; do sleep 0.1; done
    {python} -c "from pipelines.slurm.step import unreachable; print(*unreachable(['node2', 'node3']))" > {folder}/text
    mv {folder}/text {folder}/answer-$number
done
kill %1
wait
exit 0
"""


def test_a_crash_loop_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    """A fault that comes back after the same step is not tried for ever, nor on other nodes through the queue."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    site = tmp_path / "site.sh"
    site.write_text(f"{cluster.site.read_text()}\nexport PYTHONPATH={tmp_path}\n")
    job = pretrain(cluster, tmp_path, env={"SITE_FILE": str(site)})
    record = cluster.wait(job, timeout_s=600)
    log = cluster.log(job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "2:0", "0"), log
    last = log.rstrip().splitlines()[-1]
    assert re.search(r"fatal at step 8: crash loop: 3 times in a row, rank 1 on node\d: ZeroDivisionError", last), log
    assert max(read_metrics(tmp_path / "run/metrics.jsonl")) == 10
    status = cluster.run("python", "-m", "pipelines", "status", tmp_path / "run").stdout
    assert "fatal" in status and "crash loop" in status, status


# Raises on rank 1 when step 11 begins, in every process that trains.
FAULT = """
import os, sys
if os.environ.get("RANK") == "1" and any(word.endswith("run.py") for word in sys.orig_argv):
    from pretrain.distributed.watchdog import Watchdog
    at = Watchdog.at
    def faulty(self, phase, step):
        at(self, phase, step)
        if (phase, step) == ("step", 10):
            1 / 0
    Watchdog.at = faulty
"""
