"""The starts of a run as spans of time: from its timesheet and from the lines of its Slurm jobs.

All times are integer milliseconds since the epoch, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.slurm import starts
from pretrain.engine.crashes import CRASH, HANG, read_crashes
from pretrain.engine.ownership import OWNERS, last_seen
from pretrain.engine.timesheet import BEGIN, END, LOST, SHUTDOWN, STARTUP

RUNNING = "running"
UNKNOWN_END = "killed, or its machine failed: the start left no verdict"
LOCAL = "local"
CLOCK_MS = 1000  # the kernel's time of a process's beginning may be earlier than that of the line before it


@dataclass
class Attempt:
    """One start of a run.

    Attributes:
        job: (job id, restart count); ("local", 0) without Slurm.
        began_ms: when the process of rank 0 began, or the job, under Slurm.
        ranks: that train.
        gpus: that the job holds; more than ``ranks`` if some are idle.
        nodes: of the job, as far as they are known.
        lines: of the timesheet, without the first, in order.
        extra: part → milliseconds that the timesheet does not have: before its beginning and after its end.
        number: of the start in the timesheet; None: it did not come to one.
        outcome: complete, requeue, fatal, crash, hang or running.
        cause: why it ended.
        where: the rank and node that the cause names.
    """

    job: tuple[str, int]
    began_ms: int
    ranks: int
    gpus: int
    nodes: tuple[str, ...]
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict)
    number: int | None = None
    outcome: str = CRASH
    cause: str = UNKNOWN_END
    where: str = ""

    @property
    def ended_ms(self) -> int:
        """The end, by the clock of its beginning."""
        return self.began_ms + sum(self.extra.values()) + sum(sum(line["ms"].values()) for line in self.lines)

    def add(self, part: str, ms: int) -> None:
        """Adds time to a part of ``extra``."""
        self.extra[part] = self.extra.get(part, 0) + ms


def attempts_of(
    run: Path, timesheet: Sequence[Mapping[str, Any]], jobs: Sequence[starts.Start | starts.End], *, is_held: bool
) -> list[Attempt]:
    """The starts of a run in the order of their beginnings.

    Args:
        run: the run folder.
        timesheet: its lines.
        jobs: the starts and ends of its Slurm jobs.
        is_held: whether a process still trains in the folder.
    """
    by_start: dict[int, list[Mapping[str, Any]]] = {}
    for line in timesheet:
        by_start.setdefault(line["start"], []).append(line)
    seen = {lines[0]["start"] - 1: lines[0].get("seen_before_ms") for lines in by_start.values()}
    found = []
    for number, lines in by_start.items():
        if lines[0]["kind"] != BEGIN or "began_ms" not in lines[0]:  # damaged, which the record reports
            continue
        attempt = _attempt(lines)
        is_running = is_held and number == max(by_start)
        if lines[-1]["kind"] != END:
            _end_without_line(attempt, run, number, seen.get(number), is_running=is_running)
        elif attempt.outcome == CRASH:
            _name_failure(attempt, run, number)
        found.append(attempt)
    found = [*found, *_of_jobs(found, jobs)]
    return sorted(found, key=lambda attempt: attempt.began_ms)


def _attempt(lines: Sequence[Mapping[str, Any]]) -> Attempt:
    first, last = lines[0], lines[-1]
    job, ranks = (str(first.get("job_id", LOCAL)), int(first.get("restart_count", 0))), int(first.get("world_size", 1))
    attempt = Attempt(job, int(first["began_ms"]), ranks, ranks, (), list(lines[1:]), number=first["start"])
    if last["kind"] == END:
        attempt.outcome, attempt.cause = str(last.get("outcome", CRASH)), str(last.get("reason", ""))
    return attempt


def _end_without_line(attempt: Attempt, run: Path, number: int, seen_ms: int | None, *, is_running: bool) -> None:
    """Completes a start that was killed, crashed or hung; its time after the last line is lost."""
    if is_running:
        attempt.outcome, attempt.cause = RUNNING, ""
        return
    if seen_ms is None and (seen := last_seen(run / OWNERS, number)) is not None:
        seen_ms = round(1000 * seen)
    failed_ms = _name_failure(attempt, run, number)
    seen_ms = max(seen_ms or 0, failed_ms)
    attempt.add(LOST, max(0, seen_ms - attempt.ended_ms))


def _name_failure(attempt: Attempt, run: Path, number: int) -> int:
    """Takes the cause, rank and node from the first failure of a start; returns its time, 0 without one."""
    reports = read_crashes(run, number)
    if not reports:
        return 0
    first = reports[0]
    attempt.outcome, attempt.cause = first.kind, first.error
    attempt.where = f"rank {first.rank} on {first.host}"
    return first.ms


def _of_jobs(attempts: Sequence[Attempt], jobs: Sequence[starts.Start | starts.End]) -> Iterator[Attempt]:
    """Adds to the attempts what their Slurm jobs know; yields the starts that did not come to a timesheet."""
    begins = [entry for entry in jobs if isinstance(entry, starts.Start)]
    for index, start in enumerate(begins):
        job, began_ms = (start.job_id, start.restart_count), round(1000 * start.time)
        until_ms = round(1000 * begins[index + 1].time) if index + 1 < len(begins) else None
        own = [
            one
            for one in attempts
            if one.job == job
            and began_ms <= one.began_ms + CLOCK_MS
            and (until_ms is None or one.began_ms + CLOCK_MS < until_ms)
        ]
        end = next((entry for entry in jobs if isinstance(entry, starts.End) and _ends(entry, start, until_ms)), None)
        for attempt in own:
            attempt.gpus, attempt.nodes = max(start.gpus, attempt.ranks), start.nodes
        if own:
            own[0].add(STARTUP, own[0].began_ms - began_ms)
            own[0].began_ms = began_ms
            if end is not None:
                _add_end(own[-1], end)
        elif end is not None:
            missed = Attempt(job, began_ms, start.ranks, start.gpus, start.nodes, outcome=end.outcome, cause=end.reason)
            missed.add(STARTUP, max(0, round(1000 * end.time) - began_ms))
            yield missed


def _ends(entry: starts.End, start: starts.Start, until_ms: int | None) -> bool:
    same = (entry.job_id, entry.restart_count) == (start.job_id, start.restart_count)
    return same and entry.time >= start.time and (until_ms is None or round(1000 * entry.time) <= until_ms)


def _add_end(attempt: Attempt, end: starts.End) -> None:
    """The time from the end of the training to that of its Slurm step, and the first failure as the job found it."""
    left = max(0, round(1000 * end.time) - attempt.ended_ms)
    attempt.add(LOST if attempt.outcome in (CRASH, HANG) else SHUTDOWN, left)
    if end.failure is not None and attempt.outcome in (CRASH, HANG):
        attempt.cause, attempt.where = end.failure.error, end.failure.place
    elif attempt.cause == UNKNOWN_END:
        attempt.cause, attempt.where = end.reason, ""
