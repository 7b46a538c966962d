"""When a job comes back, when it leaves, and with what code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pipelines.slurm.end import Outcome, decide, exit_code, read_outcome
from pretrain.engine.run_folder import record_event


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
        (None, 75, "requeue", "a signal ended the step during its start"),
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


def test_failures_are_kept_for_the_next_decision(tmp_path: Path) -> None:
    failure = starts.Failure("node2", 1, 23, "Killed", has_trained=True, failed_at=1.0, detected_at=1.5)
    entry = starts.End("7", 0, 16, 137, "crash", "restart", str(failure), 2.0, failure)
    starts.append(tmp_path, entry)
    starts.append(tmp_path, starts.End("7", 1, 16, 1, "crash", "requeue", "", 3.0))
    starts.append(tmp_path, starts.End("8", 0, 16, 1, "crash", "restart", "", 4.0, failure))
    damaged = (tmp_path / starts.STARTS_FILE).read_text().splitlines()[0].replace("1.5", '"soon"')
    with open(tmp_path / starts.STARTS_FILE, "a") as file:
        file.write(f"{damaged}\n")
    assert starts.failures(starts.read(tmp_path), "7") == [failure] and starts.read(tmp_path)[0] == entry
    assert len(starts.read(tmp_path)) == 3
    assert entry.reason == "rank 1 on node2: Killed (after step 23)"


def test_an_end_written_before_failures_were_recorded(tmp_path: Path) -> None:
    starts.append(tmp_path, starts.End("7", 0, 4, 143, "crash", "requeue", "a rank died", 1.5))
    path = tmp_path / starts.STARTS_FILE
    path.write_text(path.read_text().replace(', "failure": null', ""))
    assert "failure" not in path.read_text() and len(starts.read(tmp_path)) == 1


def test_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    assert starts.checkpoint_step(tmp_path) == 0
    for name in ("step-00000004", "step-00000012", "step-00000016.tmp", "step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-00000020":
            (tmp_path / "checkpoints" / name / starts.MARKER).write_text("{}")
    assert starts.checkpoint_step(tmp_path) == 12


def test_a_resume_from_a_fast_checkpoint_is_progress(tmp_path: Path) -> None:
    """Those of the shared disk stay at 4; what the nodes keep is further each time."""
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000004" / starts.MARKER).touch()
    seen = []
    for restart, step in enumerate((4, 40, 80)):
        seen.append(start("7", restart, starts.checkpoint_step(tmp_path)))
        record_event(tmp_path / "history.jsonl", "resume", step)
    assert [entry.step for entry in seen] == [4, 4, 40]
    assert starts.restarts_without_progress(seen, "7", starts.checkpoint_step(tmp_path)) == 0
