"""Nodes die between two saves to the shared disk, and the job continues from the memory of those that are left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pretrain.engine.fast_folder import NodeFolder
from pretrain.engine.run_folder import read_events
from tests.integration.small_run import curve, verdict
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import STEPS, pretrain, rank_pids, reached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
FAST = "checkpoint.fast={every: 5 steps, folder: /dev/shm, peers: 1}"


def stopped(cluster: Cluster, job: str, folder: Path, ranks: int, at_step: int) -> list[int]:
    """The processes of all ranks, rank 0 first, stopped as soon as that step is done."""
    pids = cluster.until(lambda: found if len(found := rank_pids(folder)) == ranks else None, f"{ranks} ranks", job)
    cluster.until(lambda: reached(folder / "run", at_step), f"step {at_step}", job, every_s=0.02)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert not reached(folder / "run", STEPS), "the run has ended before it could be stopped: give it more steps"
    return sorted(pids, key=_rank)


def _rank(pid: int) -> int:
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(int(word[5:]) for word in words if word.startswith("RANK="))


def newest_in_memory(pid: int, ranks: int) -> int:
    """The step of the newest fast checkpoint of which a process's node has the parts of all ranks."""
    (folder,) = Path(f"/proc/{pid}/root/dev/shm").glob("vit-fast-run-*")
    node = NodeFolder(folder)
    return max(key.step for key in node.keys() if node.ranks(key) == list(range(ranks)))  # noqa: SIM118


def resumed_at(run: Path) -> list[int]:
    """The steps that its starts continued from."""
    return [event["step"] for event in read_events(run / "history.jsonl") if event["kind"] == "resume"]


def kill(cluster: Cluster, nodes: list[str], pids: list[int]) -> None:
    """Kills the nodes, and lets the other ranks continue."""
    for node in nodes:
        cluster.kill_node(node)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_lost_node_costs_the_steps_since_the_last_fast_save(cluster: Cluster, tmp_path: Path, straight: Path) -> None:
    """It boots before Slurm gives it up, with an empty memory: the node that has the copy must stay in the step."""
    run = tmp_path / "run"
    settings = ("checkpoint.every=1000 steps", FAST)
    job = pretrain(cluster, tmp_path, *settings, nodes="3", env={"SPARE_NODES": "1"})
    first, _ = stopped(cluster, job, tmp_path, ranks=2, at_step=23)
    newest, lost = newest_in_memory(first, ranks=2), starts.starts(run)[-1].nodes[1]
    kill(cluster, [lost], [first])
    cluster.boot_node(lost)
    record = cluster.wait(job, timeout_s=600)
    log = cluster.log(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "0"), log
    assert newest >= 15 and resumed_at(run) == [newest], log
    assert f"from the fast checkpoint of step {newest} on the nodes" in log
    assert f"==== crash at step 0: {lost}: the node does not answer" in log
    assert lost not in starts.starts(run)[-1].nodes
    assert verdict(run)["outcome"] == "complete" and curve(run) == curve(straight)


def test_a_lost_pair_costs_the_steps_since_the_save_to_the_shared_disk(
    cluster: Cluster, tmp_path: Path, straight: Path
) -> None:
    """Of four nodes, a node and the one with its copy: the two others continue with two ranks."""
    run = tmp_path / "run"
    job = pretrain(cluster, tmp_path, "checkpoint.every=20 steps", FAST, nodes="4")
    pids = stopped(cluster, job, tmp_path, ranks=4, at_step=33)
    pair = list(starts.starts(run)[-1].nodes[1:3])
    kill(cluster, pair, [pids[0], pids[3]])
    cluster.until(lambda: len(starts.starts(run)) == 2, "the restart", job)
    for node in pair:  # Slurm waits for them at the end of the job
        cluster.boot_node(node)
    record = cluster.wait(job, timeout_s=600)
    log = cluster.log(job)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "0"), log
    assert [(start.ranks, *start.nodes) for start in starts.starts(run)][1:] == [
        (2, *(node for node in cluster.nodes if node not in pair))
    ]
    assert resumed_at(run) == [20] and "no node has the parts of ranks 1" in log, log
    losses = {step: loss for step, (loss, *_) in curve(run).items()}
    assert losses == pytest.approx({step: loss for step, (loss, *_) in curve(straight).items()}, rel=1e-5)
