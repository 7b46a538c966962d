"""Which rank or node failed first, from what srun, the heartbeats and the ranks' crash reports say. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.slurm.starts import Failure
from pretrain.distributed.heartbeats import SILENT_ELSEWHERE_S, Beat
from pretrain.distributed.watchdog import EXIT_HUNG
from pretrain.engine.crashes import CRASH, Crash

_EXITED = re.compile(r"Exited with exit code (\d+)")
# srun's messages about a step, as of Slurm 20 to 25.
_TASKS_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")
_NO_END = "srun: error: Timed out waiting for job step to complete"
_NODE_FAILED = re.compile(r"srun: error: (?:Node failure on|Task launch for \S+ failed on node) ([^\s:]+)")


@dataclass(frozen=True)
class TaskEnd:
    """Ranks of a node that have ended with an error, in srun's words; ``ranks`` is empty if the node failed.

    ``time`` is in seconds since the epoch.
    """

    node: str
    ranks: tuple[int, ...]
    text: str
    time: float

    @property
    def exit_code(self) -> int | None:
        """None: a signal ended them."""
        found = _EXITED.fullmatch(self.text)
        return None if found is None else int(found[1])


def read_task_end(line: str, time: float) -> TaskEnd | None:
    """The end of a task as a line of srun's standard error reports it; None: it is about something else."""
    if (found := _TASKS_ENDED.match(line)) is not None:
        return TaskEnd(found[1], _numbers(found[2]), found[3].strip(), time)
    if (found := _NODE_FAILED.match(line)) is not None:
        return TaskEnd(found[1], (), "the node failed", time)
    return None


def gives_up(line: str) -> bool:
    """Whether srun says in this line that it leaves although some ranks have not ended."""
    return line.startswith(_NO_END)


def _numbers(text: str) -> tuple[int, ...]:
    """``0-2,5`` → 0, 1, 2, 5."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return tuple(number for first, _, last in ranges for number in range(int(first), int(last or first) + 1))


class Silence:
    """Finds ranks whose heartbeats have stopped while those of others continue.

    If all have stopped, the file system or the allocation is paused, and nobody is accused.

    Args:
        limit_s: seconds without a beat.
        stale: the beats that were in the folder before the step.
    """

    def __init__(self, limit_s: float, stale: Sequence[Beat]) -> None:
        self._limit_s = limit_s
        self._stale = {_key(beat) for beat in stale}
        self._changed: dict[tuple[int, int, str], tuple[int, float]] = {}

    def look(self, beats: Sequence[Beat], now: float) -> list[tuple[Beat, float]]:
        """The silent ranks, each with the second of its last beat.

        Args:
            beats: the newest of all ranks.
            now: seconds on a monotonic clock.
        """
        current = [beat for beat in beats if _key(beat) not in self._stale]
        for beat in current:
            known = self._changed.get(_key(beat))
            if known is None or known[0] != beat.count:
                self._changed[_key(beat)] = (beat.count, now)
        last = {_key(beat): self._changed[_key(beat)][1] for beat in current}
        if not any(now - at <= SILENT_ELSEWHERE_S for at in last.values()):
            return []
        return [
            (beat, last[_key(beat)])
            for beat in current
            if now - last[_key(beat)] > self._limit_s and beat.phase != "end"
        ]


def _key(beat: Beat) -> tuple[int, int, str]:
    return beat.rank, beat.pid, beat.host


@dataclass(frozen=True)
class Evidence:
    """The evidence when a step has ended.

    Attributes:
        code: exit code of srun.
        ends: what srun said about its tasks, in order.
        silent: the ranks for whose silence the step was stopped.
        silent_since: seconds since the epoch of their last beat.
        lost: nodes that did not end their ranks, or do not answer any more.
        crashes: the ranks' own reports, the first one first.
        beats: the newest of all ranks.
        step: the newest step that was logged.
        has_trained: whether a step was done since the start.
        detected_at: seconds since the epoch.
    """

    code: int
    ends: Sequence[TaskEnd]
    silent: Sequence[Beat]
    silent_since: float
    lost: Collection[str]
    crashes: Sequence[Crash]
    beats: Sequence[Beat]
    step: int
    has_trained: bool
    detected_at: float


def diagnose(seen: Evidence) -> Failure:
    """The first failure: of a node, else of a silent rank, a killed rank, or the rank that reported a crash first.

    The others fail because of it, in a collective or by srun, which ends them.
    """
    node, rank, error, failed_at = _culprit(seen)
    step = max([crash.step for crash in seen.crashes], default=seen.step)
    return Failure(node, rank, step, error, seen.has_trained, min(failed_at, seen.detected_at), seen.detected_at)


def _culprit(seen: Evidence) -> tuple[str, int | None, str, float]:
    first = seen.ends[0] if seen.ends else None
    lost = [*[end.node for end in seen.ends if not end.ranks], *sorted(seen.lost)]
    if lost:
        return lost[0], None, "the node does not answer", seen.silent_since if seen.silent else seen.detected_at
    if seen.silent:
        beat, alone = seen.silent[0], len(seen.silent) == 1
        return beat.host, beat.rank if alone else None, "no heartbeat any more", seen.silent_since
    if first is not None and first.exit_code is None:
        return first.node, first.ranks[0], first.text, first.time
    report = seen.crashes[0] if seen.crashes else None
    if report is not None and report.kind == CRASH:
        return report.host, report.rank, report.error, report.time
    if report is not None or (first is not None and first.exit_code == EXIT_HUNG):
        failed_at = seen.detected_at if first is None else first.time
        behind = min(beat.progress for beat in seen.beats) if seen.beats else None
        late = [beat for beat in seen.beats if beat.progress == behind]
        if len(late) == 1:
            return late[0].host, late[0].rank, f"hung in phase {late[0].phase}", failed_at
        return "", None, "the ranks hung", failed_at
    if first is not None:
        return first.node, first.ranks[0], first.text, first.time
    return "", None, f"the step left with {seen.code}", seen.detected_at
