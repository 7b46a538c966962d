"""Fast checkpoints of real jobs on simulated nodes: what a crash, a lost node, a full or a silent one costs."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from pretrain.engine.saving import WRITING
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.faults.job import Faults, checkpoint_steps, job
from tests.integration.small_run import curve, pretrain
from tests.pool import Pool

CRASH = 7  # with fast checkpoints at 2, 4 and 6, and one on the shared disk at 4


def run(pool: Pool, folder: Path, *settings: str, nodes: tuple[int, ...] = (0, 1), **faults: object) -> dict:
    for node in nodes:
        (folder / f"node-{node}").mkdir(parents=True, exist_ok=True)
    fast = [f"checkpoint.fast.folder={folder}/{{node}}", "checkpoint.fast.every=2 steps"]
    return pool.run(job, str(folder), [*fast, *settings], Faults(nodes=nodes, **faults))[0]  # type: ignore[arg-type]


def fast_steps(folder: Path, node: int) -> dict[int, list[str]]:
    """Step of each fast checkpoint on a node → the parts that are there."""
    paths = sorted(folder.glob(f"node-{node}/*/*/slices/*.json"))
    steps = {int(path.parts[-3].rpartition("-")[2]) for path in paths}
    return {step: [path.stem for path in paths if path.parts[-3].endswith(f"{step:08d}")] for step in steps}


@pytest.fixture(scope="module")
def straight(digits: None, pool2: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple]:
    """The curve of the same run without fast checkpoints and without a fault."""
    folder = tmp_path_factory.mktemp("straight")
    assert pool2.run(job, str(folder), [], Faults())[0]["outcome"] == "complete"
    return curve(folder / "run")


@pytest.fixture(scope="module")
def dead(digits: None, pool2: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on two nodes that ended in step 7, and a copy of it."""
    folder, copy = tmp_path_factory.mktemp("dead"), tmp_path_factory.mktemp("copy")
    assert run(pool2, folder, "checkpoint.asynchronous=false", crash_at=CRASH)["outcome"] == "SetupError"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return folder, copy


@pytest.fixture
def crashed(dead: tuple[Path, Path]) -> Path:
    """The same, as it was."""
    folder, copy = dead
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    assert checkpoint_steps(folder / "run") == [4]
    assert fast_steps(folder, 0) == fast_steps(folder, 1) == {6: ["rank-00000", "rank-00001"]}
    return folder


def resumed_at(done: dict) -> int:
    """The step at which a resumed job began, by what it printed about the verified load."""
    (line,) = [line for line in done["said"] if line.endswith("verified")]
    return int(line.removeprefix("step ").partition(":")[0])


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_lost_node_costs_nothing_since_the_last_fast_save(
    pool2: Pool, crashed: Path, straight: dict[int, tuple], lost: int
) -> None:
    shutil.rmtree(crashed / f"node-{lost}")
    done = run(pool2, crashed)
    assert (done["outcome"], resumed_at(done)) == ("complete", 6), done
    assert curve(crashed / "run") == straight
    assert not fast_steps(crashed, 0) and not list(crashed.glob("node-*/*")), "memory is given back at the end"


def test_a_lost_pair_falls_back_to_the_shared_disk(pool2: Pool, crashed: Path, straight: dict[int, tuple]) -> None:
    """Half a checkpoint, which takes space that the next one needs, is removed."""
    for path in crashed.glob("node-*/*/*/slices/rank-00000.*"):
        path.unlink()
    settings = ["checkpoint.every=4 steps", "checkpoint.fast.every=3 steps"]
    done = run(pool2, crashed, *settings, crash_at=5)
    assert resumed_at(done) == 4 and not fast_steps(crashed, 0), done
    done = run(pool2, crashed)
    assert (done["outcome"], resumed_at(done)) == ("complete", 4), done
    assert curve(crashed / "run") == straight


def test_damaged_parts_are_replaced_by_their_copies(pool2: Pool, crashed: Path, straight: dict[int, tuple]) -> None:
    """A flipped bit in one, a torn write of another; with both copies of a part damaged the shared disk decides."""
    flipped, torn = (next(crashed.glob(f"node-{rank}/*/*/slices/rank-0000{rank}.safetensors")) for rank in (0, 1))
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    torn.write_bytes(torn.read_bytes()[:-100])
    done = run(pool2, crashed, stop_at=(8, 0))
    assert resumed_at(done) == 6 and sum("is damaged" in line for line in done["said"]) == 2, done["said"]
    assert curve(crashed / "run") == {step: straight[step] for step in range(1, 9)}


def test_a_newer_attempt_that_is_behind_is_continued(pool2: Pool, crashed: Path, straight: dict[int, tuple]) -> None:
    """Both nodes were away in attempt 2, and return with parts of attempt 1 that are further."""
    stale = crashed.with_name("stale")
    for node in (0, 1):
        shutil.move(crashed / f"node-{node}", stale / f"node-{node}")
    run(pool2, crashed, "checkpoint.every=5 steps", "checkpoint.asynchronous=false", crash_at=6)
    assert checkpoint_steps(crashed / "run") == [4, 5]
    shutil.copytree(stale, crashed, dirs_exist_ok=True)
    assert list(fast_steps(crashed, 0)) == [6]
    done = run(pool2, crashed)
    assert (done["outcome"], resumed_at(done)) == ("complete", 5), done
    assert curve(crashed / "run") == straight


@pytest.mark.slow
def test_another_number_of_ranks(pool1: Pool, crashed: Path, straight: dict[int, tuple]) -> None:
    """One node has the parts of all ranks, so the run continues there alone, from ZeRO-1 to DDP."""
    shutil.rmtree(crashed / "node-0")
    done = run(pool1, crashed, "cluster.backend=accelerate", nodes=(1,))
    assert (done["outcome"], resumed_at(done)) == ("complete", 6), done
    assert any("no copy on another node, since this job has one node" in line for line in done["said"])
    losses = {step: values[0] for step, values in curve(crashed / "run").items()}
    assert losses == pytest.approx({step: values[0] for step, values in straight.items()}, rel=1e-5)


def test_a_node_that_is_full_loses_nothing_but_that_save(digits: None, pool2: Pool, tmp_path: Path) -> None:
    """The kernel refuses large files of rank 1 from step 3 on, as a full memory does."""
    done = run(pool2, tmp_path, "checkpoint.every=11 steps", file_limit=(1, 3, 20_000), crash_at=CRASH)
    failed = [line for line in done["said"] if "no fast checkpoint" in line]
    assert len(failed) == 1 and failed[0].startswith("step 4: no fast checkpoint: rank 1 on node-1 could not write")
    assert max(curve(tmp_path / "run")) == CRASH, "the training continued"
    assert fast_steps(tmp_path, 0) == fast_steps(tmp_path, 1) == {2: ["rank-00000", "rank-00001"]}


@pytest.mark.slow
def test_a_peer_that_is_silent(digits: None, pool2: Pool, tmp_path: Path, straight: dict[int, tuple]) -> None:
    """Rank 1 neither sends nor receives: one save fails within the time limit, and the next ones have no copies."""
    done = run(pool2, tmp_path, silent_peer=1, crash_at=CRASH)
    failed = [line for line in done["said"] if "no fast checkpoint" in line]
    assert len(failed) == 1 and "step 2: no fast checkpoint: no connection with rank 1" in failed[0], done["said"]
    assert "the next ones have no copies on other nodes, and the training continues" in failed[0]
    assert (fast_steps(tmp_path, 0), fast_steps(tmp_path, 1)) == ({6: ["rank-00000"]}, {6: ["rank-00001"]})
    done = run(pool2, tmp_path)
    assert (done["outcome"], resumed_at(done)) == ("complete", 6), "parts without copies survive a crash"
    assert curve(tmp_path / "run") == straight


def test_training_continues_while_a_save_is_in_flight(
    digits: None, pool2: Pool, tmp_path: Path, straight: dict[int, tuple]
) -> None:
    """A save that becomes due meanwhile begins once the one before it is done, and no loss changes."""
    settings = ["checkpoint.every=11 steps", "checkpoint.fast.every=1 steps"]
    done = run(pool2, tmp_path, *settings, fast_lag=2)
    assert done["outcome"] == "complete" and any(WRITING in ranks for ranks in done["fast_saving"])
    assert curve(tmp_path / "run") == straight
    assert 1 <= len(read_metrics(tmp_path / "run/metrics.jsonl", "fast_save")) < 11


@pytest.mark.slow
def test_a_full_memory(command: Commands, digits: None, tmp_path: Path) -> None:
    """A memory of 1 MiB, mounted for one job only: the space that stays free for others is missing."""
    if command.run("unshare", "-rm", "true").returncode:
        pytest.skip("this kernel lets no user mount")
    memory = tmp_path / "memory"
    settings = [f"checkpoint.fast.folder={memory}", "checkpoint.fast.every=1 steps", "evaluation.sets={}"]
    words = pretrain("alone", tmp_path, *settings)
    mount = f"mkdir {memory} && mount -t tmpfs -o size=1m tmpfs {memory}"
    job = command.run("unshare", "-rm", "sh", "-c", f"{mount} && {shlex.join(words)}")
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("no fast checkpoint") == 1 and "no space: " in job.stdout, job.stdout
