"""When a job comes back, when it leaves, and with what code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pipelines.slurm.verdict import Outcome, decide, exit_code, read_outcome


@pytest.mark.parametrize(
    ("verdict", "code", "kind", "says"),
    [
        ({"outcome": "complete", "job_id": "7", "restart_count": 1, "reason": "all steps done"}, 0, "complete", "all"),
        ({"outcome": "requeue", "job_id": "7", "restart_count": 1, "reason": "signal"}, 143, "requeue", "signal"),
        ({"outcome": "fatal", "job_id": "7", "restart_count": 1, "reason": "no space"}, 143, "fatal", "no space"),
        ({"outcome": "complete", "job_id": "7", "restart_count": 0}, 0, "crash", "left with 0"),  # an earlier start's
        ({"outcome": "requeue", "job_id": "6", "restart_count": 1}, 9, "crash", "left with 9"),  # another job's
        ({"outcome": "unheard of", "job_id": "7", "restart_count": 1}, 1, "crash", "left with 1"),
        (None, 70, "crash", "a rank hung"),
    ],
)
def test_only_a_fresh_verdict_counts(
    tmp_path: Path, verdict: dict[str, object] | None, code: int, kind: str, says: str
) -> None:
    if verdict is not None:
        (tmp_path / "exit.json").write_text(json.dumps(verdict))
    outcome = read_outcome(tmp_path, "7", 1, code)
    assert outcome.kind == kind and says in outcome.reason


@pytest.mark.parametrize(
    ("kind", "has_progressed", "idle", "decision", "code"),
    [
        ("complete", True, 0, "leave", 0),
        ("complete", False, 9, "leave", 0),
        ("fatal", True, 0, "leave", 2),
        ("requeue", True, 0, "requeue", 0),
        ("requeue", True, 9, "requeue", 0),
        ("requeue", False, 2, "requeue", 0),
        ("requeue", False, 3, "give_up", 75),
        ("crash", True, 3, "requeue", 0),
        ("crash", False, 0, "requeue", 0),
        ("crash", False, 3, "give_up", 75),
    ],
)
def test_the_rule(kind: str, has_progressed: bool, idle: int, decision: str, code: int) -> None:
    outcome = Outcome(kind, "")
    decided = decide(outcome, has_progressed=has_progressed, without_progress=idle, limit=3)
    assert (decided, exit_code(outcome, decided)) == (decision, code)


def start(job: str, restart: int, step: int) -> starts.Start:
    return starts.Start(job, restart, ("node1", "node2"), 16, 16, step, "", 0.0)


@pytest.mark.parametrize(
    ("steps", "now", "expected"),
    [
        ([], 0, 0),
        ([0], 0, 0),
        ([0, 0, 0], 0, 2),
        ([0, 0, 10], 10, 0),
        ([0, 10, 10], 10, 1),
        ([0, 0, 0], 10, 0),
    ],
)
def test_restarts_without_progress(steps: list[int], now: int, expected: int) -> None:
    entries = [start("7", restart, step) for restart, step in enumerate(steps)]
    assert starts.restarts_without_progress(entries, "7", now) == expected
    assert starts.restarts_without_progress(entries, "8", now) == 0, "another job begins to count anew"


def test_the_file_survives_a_line_cut_short(tmp_path: Path) -> None:
    first, second = start("7", 0, 0), start("7", 1, 4)
    end = starts.End("7", 0, 4, 143, "crash", "requeue", "a rank died", 1.5)
    starts.append(tmp_path, first)
    starts.append(tmp_path, end)
    with open(tmp_path / starts.STARTS_FILE, "a") as file:
        file.write('{"event": "sta')
    starts.append(tmp_path, second)
    assert starts.read(tmp_path) == [first, end, second]
    assert starts.starts(tmp_path) == [first, second]


def test_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    assert starts.checkpoint_step(tmp_path) == 0
    for name in ("step-00000004", "step-00000012", "step-00000016.tmp", "step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-00000020":
            (tmp_path / "checkpoints" / name / starts.MARKER).write_text("{}")
    assert starts.checkpoint_step(tmp_path) == 12
