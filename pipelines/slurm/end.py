"""``python -m pipelines.slurm end``: after the step. Exits, requeues or gives up; the last line gives the reason."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.slurm import scheduler, starts
from pipelines.slurm.scheduler import Job
from pipelines.slurm.verdict import CRASH, EXIT_FATAL, Outcome, decide, exit_code, read_outcome
from pretrain.engine.run_folder import FATAL
from pretrain.errors import SetupError


def end(run: Path, code: int, limit: int, *, bad_nodes: Sequence[str] = (), reason: str = "") -> int:
    """Decides and acts; returns the job's exit code.

    Args:
        run: run folder.
        code: exit code of the step.
        limit: restarts in a row that may bring no newer checkpoint.
        bad_nodes: found by the preflight; the job is requeued without them.
        reason: why there was no step at all; replaces the verdict.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue ends the batch shell and its children
    job = scheduler.current_job()
    outcome = read_outcome(run, job.job_id, job.restart_count, code)
    if bad_nodes or reason:
        outcome = Outcome(CRASH, reason or f"the preflight found {', '.join(bad_nodes)} unfit")
    known = starts.starts(run)
    step, began_at = starts.checkpoint_step(run), known[-1].step if known else 0
    idle = starts.restarts_without_progress(known, job.job_id, step)
    decision = decide(outcome, has_progressed=step > began_at, without_progress=idle, limit=limit)
    ended_elsewhere = decision == "requeue" and not scheduler.may_requeue(job.job_id)
    word = "leave" if ended_elsewhere else decision
    entry = starts.End(job.job_id, job.restart_count, step, code, outcome.kind, word, outcome.reason, starts.now())
    starts.append(run, entry)
    print(f"==== {outcome.kind} at step {step}: {outcome.reason}", flush=True)
    if ended_elsewhere:
        print("not requeued by this job: somebody cancelled it, or Slurm ends or requeues it itself", flush=True)
        scheduler.change_waiting(job.job_id, scheduler.returning_with(job))  # a node failed: others may work
        return exit_code(outcome, "leave")
    if decision == "requeue":
        return _requeue(job, bad_nodes)
    if decision == "give_up":
        print(f"gave up: {idle} restarts in a row without a newer checkpoint than step {step}", flush=True)
    return exit_code(outcome, decision)


def refuse(run: Path, reason: str) -> int:
    """Ends a start that would fail on any node; returns the job's exit code. The reason is the log's last line."""
    job, step = scheduler.current_job(), starts.checkpoint_step(run)
    entry = starts.End(job.job_id, job.restart_count, step, 0, FATAL, "leave", reason, starts.now())
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
