"""The ways on from a checkpoint: another batch, a cooldown, and the one before when the newest is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.engine.run_folder import read_events
from pretrain.telemetry.metrics import read_metrics
from tests.faults.job import checkpoint_steps, job
from tests.integration.small_run import curve
from tests.pool import Pool


def run(pool: Pool, folder: Path, *settings: str) -> dict:
    return pool.run(job, str(folder), list(settings))[0]


def test_a_changed_batch_keeps_the_samples_seen(digits: None, pool1: Pool, tmp_path: Path) -> None:
    """Half the batch: the same samples follow in the same lanes, and the run is as long in samples as before."""
    batch = ["global_batch_size=32", "data.lanes=8", "resume.allow_changes=[global_batch_size, duration]"]
    run(pool1, tmp_path, "global_batch_size=64", "duration=4 steps")
    done = run(pool1, tmp_path, *batch, "duration=12 steps")
    assert done["outcome"] == "complete" and done["step"] == 8, done["reason"]
    assert any("256 samples were seen; they count as 8 of 12 steps of 32" in line for line in done["said"])
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [lines[step]["samples"] for step in (4, 5, 8)] == [256, 288, 384]
    straight = tmp_path / "straight"
    run(pool1, straight, *batch[:2], "duration=12 steps")
    theirs = read_metrics(straight / "run/metrics.jsonl")
    assert [lines[step]["batch_digest"] for step in range(5, 9)] == [
        theirs[step]["batch_digest"] for step in range(9, 13)
    ]
    assert [lines[step]["lr"] for step in range(5, 9)] == [theirs[step]["lr"] for step in range(9, 13)]
    refused = run(pool1, tmp_path, "global_batch_size=16", "resume.allow_changes=[global_batch_size, duration]")
    assert refused["outcome"] == "ConfigError" and "data.lanes=8" in refused["reason"]


def test_a_change_is_recorded(digits: None, pool1: Pool, tmp_path: Path) -> None:
    run(pool1, tmp_path, "duration=4 steps", "optim.schedule.name=constant")
    allowed = "resume.allow_changes=[optim.lr, duration]"
    changed = run(pool1, tmp_path, "duration=6 steps", "optim.schedule.name=constant", "optim.lr=5e-4", allowed)
    assert "the learning rate at step 4 is 0.0005 now, it was 0.001" in changed["said"]
    kinds = {line["kind"]: line for line in read_events(tmp_path / "run/history.jsonl")}
    assert list(kinds) == ["launch", "start", "first_step", "resume", "change"]
    began = list(kinds["first_step"]["began"].items())
    # The ranks of a pool have joined before, so there is no phase of that name.
    assert [phase for phase, _ in began] == ["process", "import", "choose", "start", "load", "data", "step"]
    assert [moment for _, moment in began] == sorted(moment for _, moment in began), "each phase follows the one before"
    assert kinds["first_step"]["step"] == 5
    launches = [line for line in read_events(tmp_path / "run/history.jsonl") if line["kind"] == "launch"]
    assert [line["step"] for line in launches] == [0, 4] and launches[0]["digest"] != launches[1]["digest"]
    assert all(line["command"] and line["packages"]["torch"] and line["world_size"] == 1 for line in launches)
    assert kinds["change"]["step"] == 4 and kinds["change"]["lr"] == [0.001, 0.0005]
    assert {"key": "optim.lr", "old": 0.001, "new": 0.0005} in kinds["change"]["settings"]


def test_a_trunk_cools_down_by_one_command(digits: None, pool1: Pool, tmp_path: Path) -> None:
    trunk = ["optim.schedule.name=constant"]
    run(pool1, tmp_path, *trunk)
    fork = [*trunk, "name=cooled", f"resume.from={tmp_path}/run", "resume.cooldown=4 steps"]
    done = run(pool1, tmp_path, *fork)
    assert (done["outcome"], done["step"]) == ("complete", 16), done["reason"]
    rates = [row[0] for row in curve(tmp_path / "cooled", "lr").values()]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    parent = next(line for line in read_events(tmp_path / "cooled/history.jsonl") if line["kind"] != "launch")
    assert parent["kind"] == "fork" and parent["checkpoint"].endswith("run/checkpoints/step-00000012")
    assert run(pool1, tmp_path, *fork)["outcome"] == "complete", "the same command again finds the fork's own end"
    into_trunk = run(pool1, tmp_path, *trunk, f"resume.from={tmp_path}/run", "resume.cooldown=4 steps")
    assert into_trunk["outcome"] == "ConfigError" and "choose another name" in into_trunk["reason"]
    cosine = run(pool1, tmp_path, *fork[1:], "name=third")
    assert cosine["outcome"] == "ConfigError" and "constant or rsqrt" in cosine["reason"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "bytes instead of"),
    "bit flipped": (flip, "does not have the hash"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize(
    "damage", [pytest.param(damage, marks=[pytest.mark.quick] if damage == "bit flipped" else []) for damage in DAMAGES]
)
@pytest.mark.parametrize(
    "file",
    [
        "slices/rank-00000.safetensors",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("state.json", "weights.safetensors")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(digits: None, pool1: Pool, tmp_path: Path, damage: str, file: str) -> None:
    run(pool1, tmp_path, "duration=8 steps")
    straight = curve(tmp_path / "run")
    harm, message = DAMAGES[damage]
    harm(tmp_path / "run/checkpoints/step-00000008" / file)
    done = run(pool1, tmp_path, "duration=8 steps")
    said = next(line for line in done["said"] if "is passed over" in line)
    assert "step-00000008" in said and file in said and message in said
    assert done["outcome"] == "complete" and curve(tmp_path / "run") == straight
    assert checkpoint_steps(tmp_path / "run") == [4, 8]
