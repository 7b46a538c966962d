"""The decision of a job when its step has ended: a pure function that relies on the run's ``exit.json``.

| exit.json of this very start | the job |
|---|---|
| complete | exits with 0 |
| fatal | exits with 2, the reason on the last line |
| requeue | is requeued, unless it made no progress too often: 75 |
| none (a crash, a dead rank or node) | same as requeue |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pretrain.engine.run_folder import COMPLETE, FATAL, read_verdict

CRASH = "crash"
EXIT_COMPLETE, EXIT_FATAL, EXIT_HUNG, EXIT_GAVE_UP = 0, 2, 70, 75
DEFAULT_MAX_RESTARTS = 3

Decision = Literal["leave", "requeue", "give_up"]


@dataclass(frozen=True)
class Outcome:
    """How this start ended, by its own verdict: complete, requeue, fatal, or crash without one."""

    kind: str
    reason: str


def read_outcome(run: Path, job_id: str, restart_count: int, code: int) -> Outcome:
    """The verdict of exactly this start; an older one is ignored.

    Args:
        run: run folder.
        job_id, restart_count: this start.
        code: exit code of srun; 143 if it ended the others after one rank had died.
    """
    record = read_verdict(run)
    verdict: dict[str, Any] = record.value or {}
    is_fresh = (str(verdict.get("job_id")), verdict.get("restart_count")) == (job_id, restart_count)
    if is_fresh:
        return Outcome(str(verdict["outcome"]), str(verdict.get("reason", "")))
    what = "a rank hung" if code == EXIT_HUNG else f"the step left with {code}" if code else "the step left with 0"
    return Outcome(CRASH, f"{what} and {record.problem or 'no verdict'}")


def decide(outcome: Outcome, *, has_progressed: bool, without_progress: int, limit: int) -> Decision:
    """Decides whether to requeue, exit or give up.

    Args:
        outcome: of this start.
        has_progressed: whether there is a newer checkpoint than at the start.
        without_progress: restarts in a row, before this one's end, that brought no newer checkpoint.
        limit: how many of those are allowed.
    """
    if outcome.kind in (COMPLETE, FATAL):
        return "leave"
    return "requeue" if has_progressed or without_progress < limit else "give_up"


def exit_code(outcome: Outcome, decision: Decision) -> int:
    """The job's exit code; 0 for a job that requeues itself."""
    if decision == "give_up":
        return EXIT_GAVE_UP
    return EXIT_FATAL if outcome.kind == FATAL else 0
