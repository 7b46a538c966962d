"""Updates that fail in a row: back to the last good checkpoint and past the window, exactly, and not for ever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pretrain.engine.run_folder import read_events
from pretrain.telemetry.metrics import read_metrics
from tests.faults.job import NONE, Faults, checkpoint_steps, job
from tests.integration.small_run import curve
from tests.pool import Pool

BATCH = 64  # of the demo's config
GUARD = ["guard.max_consecutive_skips=3", "data.lanes=8", f"global_batch_size={BATCH}"]
FSDP2 = ["cluster.backend=fsdp2", "precision=bf16", "checkpoint.asynchronous=true"]
# Steps 7, 8 and 9 draw these samples; with a checkpoint every 4 steps the last good one is that of step 4.
WINDOW = (6 * BATCH, 9 * BATCH)


def run(pool: Pool, folder: Path, *settings: str, faults: Faults = NONE) -> dict:
    return pool.run(job, str(folder), [*GUARD, *settings], faults)[0]


def test_back_to_the_last_good_checkpoint_and_past_the_window(digits: None, pool2: Pool, tmp_path: Path) -> None:
    done = run(pool2, tmp_path, faults=Faults(nan=WINDOW))
    folder = tmp_path / "run"
    assert done["outcome"] == "complete", done["reason"]
    assert any(
        "3 updates in a row had a loss or gradient that was not finite: rolled back" in line for line in done["said"]
    )
    event = next(line for line in read_events(folder / "history.jsonl") if line["kind"] == "rollback")
    assert (event["step"], event["back_to"], event["skipped_window"]) == (9, 4, [4 * BATCH, 9 * BATCH])
    lines = read_metrics(folder / "metrics.jsonl")
    assert [lines[step]["samples"] for step in (4, 5, 12)] == [4 * BATCH, 10 * BATCH, 17 * BATCH]
    state = json.loads((folder / "checkpoints/step-00000012/state.json").read_text())
    assert (state["position"], state["num_updates"], state["skipped_windows"]) == (
        17 * BATCH,
        12,
        [[4 * BATCH, 9 * BATCH]],
    )
    assert lines[12]["skipped_updates"] == 0, "the updates that were skipped belong to the way given up"


@pytest.mark.parametrize("more", [[], FSDP2], ids=["ZeRO-1", "FSDP2"])
def test_a_resume_after_a_rollback_is_exact(digits: None, pool2: Pool, tmp_path: Path, more: list[str]) -> None:
    """In-place loading leaves nothing behind: a fresh start from the rolled-back state goes the same way."""
    run(pool2, tmp_path / "a", *more, faults=Faults(nan=WINDOW))
    stopped = run(pool2, tmp_path / "b", *more, faults=Faults(nan=WINDOW, stop_at=(6, 1)))
    assert (stopped["outcome"], stopped["step"]) == ("requeue", 6)
    assert run(pool2, tmp_path / "b", *more, faults=Faults(nan=WINDOW))["outcome"] == "complete"
    assert curve(tmp_path / "b/run") == curve(tmp_path / "a/run")


def test_a_kill_right_after_a_rollback_goes_on_after_the_window(digits: None, pool1: Pool, tmp_path: Path) -> None:
    run(pool1, tmp_path, "checkpoint.keep_last=9", faults=Faults(nan=WINDOW))
    for step in (8, 12):  # what the rolled-back run saved later: a kill would have left the rest
        shutil.rmtree(tmp_path / f"run/checkpoints/step-{step:08d}")
    straight = curve(tmp_path / "run")
    done = run(pool1, tmp_path, faults=Faults(nan=WINDOW))
    assert done["outcome"] == "complete" and not any("rolled back" in line for line in done["said"])
    assert curve(tmp_path / "run") == straight


@pytest.mark.parametrize(
    ("nan", "settings", "message", "rollbacks"),
    [
        ((6 * BATCH, 10**9), ["guard.max_rollbacks=2"], "after 2 rollbacks (guard.max_rollbacks: 2)", 2),
        ((6 * BATCH, 10**9), ["guard.max_rollbacks=0"], "after 0 rollbacks", 0),
        ((0, 10**9), [], "there is no checkpoint before them to go back to", 0),
    ],
)
def test_it_ends_in_the_end(
    digits: None, pool1: Pool, tmp_path: Path, nan: tuple[int, int], settings: list[str], message: str, rollbacks: int
) -> None:
    done = run(pool1, tmp_path, *settings, faults=Faults(nan=nan))
    assert done["outcome"] == "fatal" and message in done["reason"], done["reason"]
    history = read_events(tmp_path / "run/history.jsonl")
    assert [line["kind"] for line in history].count("rollback") == rollbacks
    assert checkpoint_steps(tmp_path / "run") == ([4] if nan[0] else [])
