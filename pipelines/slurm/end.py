"""``python -m pipelines.slurm end``: after the step. Exits, requeues or gives up; the last line gives the reason.

The decision is a pure function that relies on the run's ``exit.json``:

| exit.json of this very start | the job |
|---|---|
| complete | exits with 0 |
| fatal | exits with 2, the reason on the last line |
| requeue | is requeued, unless it made no progress too often: 75 |
| none (a crash, a dead rank or node) | same as requeue |
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.slurm import scheduler, starts
from pipelines.slurm.scheduler import Job
from pretrain.engine.run_folder import COMPLETE, EXIT_CODES, FATAL, REQUEUE, read_verdict
from pretrain.errors import SetupError

CRASH = "crash"
EXIT_COMPLETE, EXIT_FATAL, EXIT_HUNG, EXIT_GAVE_UP = 0, 2, 70, 75
DEFAULT_MAX_RESTARTS = 3

Decision = Literal["leave", "requeue", "give_up"]


@dataclass(frozen=True)
class Outcome:
    """How this start ended, by its own verdict: complete, requeue, fatal, or crash without one."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Cause:
    """Why a start ended, where that is known besides the verdict.

    Attributes:
        reason: of the crash; the verdict does not matter then.
        bad_nodes: unfit or failing ones; the job is requeued without them.
        failure: the first one of the step.
    """

    reason: str = ""
    bad_nodes: Sequence[str] = ()
    failure: starts.Failure | None = None


UNKNOWN = Cause()


def end(run: Path, code: int, limit: int, cause: Cause = UNKNOWN) -> int:
    """Decides and acts; returns the job's exit code.

    Args:
        run: run folder.
        code: exit code of the step.
        limit: restarts in a row that may bring no newer checkpoint.
        cause: see the class.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue ends the batch shell and its children
    job = scheduler.current_job()
    outcome = read_outcome(run, job.job_id, job.restart_count, code)
    if cause.bad_nodes or cause.reason:
        outcome = Outcome(CRASH, cause.reason or f"the preflight found {', '.join(cause.bad_nodes)} unfit")
    known = starts.starts(run)
    step, began_at = starts.checkpoint_step(run), known[-1].step if known else 0
    idle = starts.restarts_without_progress(known, job.job_id, step)
    decision = decide(outcome, has_progressed=step > began_at, without_progress=idle, limit=limit)
    ended_elsewhere = decision == "requeue" and not scheduler.may_requeue(job.job_id)
    word = "leave" if ended_elsewhere else decision
    about = (outcome.kind, word, outcome.reason, starts.now(), cause.failure)
    starts.append(run, starts.End(job.job_id, job.restart_count, step, code, *about))
    print(f"==== {outcome.kind} at step {step}: {outcome.reason}", flush=True)
    if ended_elsewhere:
        _leave_to_slurm(job)
        return exit_code(outcome, "leave")
    if decision == "requeue":
        return _requeue(job, cause.bad_nodes)
    if decision == "give_up":
        print(f"gave up: {idle} restarts in a row without a newer checkpoint than step {step}", flush=True)
    return exit_code(outcome, decision)


def _leave_to_slurm(job: Job) -> None:
    print("not requeued by this job: somebody cancelled it, or Slurm ends or requeues it itself", flush=True)
    scheduler.change_waiting(job.job_id, scheduler.returning_with(job))  # a node failed: others may work


def refuse(run: Path, reason: str, failure: starts.Failure | None = None) -> int:
    """Ends a start that would fail on any node; returns the job's exit code. The reason is the log's last line."""
    job, step = scheduler.current_job(), starts.checkpoint_step(run)
    entry = starts.End(job.job_id, job.restart_count, step, 0, FATAL, "leave", reason, starts.now(), failure)
    starts.append(run, entry)
    print(f"==== fatal at step {step}: {reason}", file=sys.stderr, flush=True)
    return EXIT_FATAL


def _requeue(job: Job, bad_nodes: Sequence[str]) -> int:
    without = f" without {', '.join(bad_nodes)}" if bad_nodes else ""
    print(f"requeued{without}", flush=True)
    try:
        scheduler.requeue(job, bad_nodes)
    except SetupError as error:
        print(f"error: not requeued: {error}", flush=True)
        return EXIT_FATAL
    return 0


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
    if code == EXIT_CODES[REQUEUE]:
        return Outcome(REQUEUE, "a signal ended the step during its start")
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
