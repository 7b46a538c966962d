"""Tells a run that hangs from one that is slow, on a quiet machine and on a busy one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 60  # without a batch, in which the processes are idle
IDLE_SHARE = 0.05  # of a core: a loop that waits for a dead process looks often, and does nothing
STARVED_PATIENCE = 10  # times the patience, if the processes wait for a core
SPIN_CPU_S = 120  # without a batch: an epoch of the small sets costs about two


@dataclass(frozen=True)
class Effort:
    """The work of all processes of a run so far.

    Attributes:
        at: seconds of a clock that only grows.
        cpu_s: CPU seconds used.
        queued_s: seconds in which threads waited for a core.
        drawn: bytes of the outcomes, which grow with each batch.
    """

    at: float
    cpu_s: float
    queued_s: float
    drawn: int


class Progress:
    """Follows a run from one ``Effort`` to the next.

    Args:
        patience_s: seconds without a batch after which idle processes are hung.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._last: Effort | None = None

    def is_hung(self, effort: Effort) -> bool:
        """Whether no batch has come although the processes are idle, or busy for far longer than a batch can take."""
        if self._last is None or effort.drawn != self._last.drawn:
            self._last = effort
            return False
        since = self._last
        waited, used = effort.at - since.at, effort.cpu_s - since.cpu_s
        if used > SPIN_CPU_S:
            return True
        if waited < self._patience_s or used > IDLE_SHARE * waited:
            return False
        starved = effort.queued_s - since.queued_s > IDLE_SHARE * waited
        return not starved or waited > STARVED_PATIENCE * self._patience_s


def effort_of(processes: Sequence[int], outcomes: Sequence[Path]) -> Effort:
    """The effort of processes and those below them."""
    trees = [one for process in processes for one in _tree(process)]
    cpu_s = queued_s = 0.0
    for one in trees:
        with contextlib.suppress(psutil.NoSuchProcess):
            cpu_s += sum(one.cpu_times()[:4])
            queued_s += sum(_queued(one.pid))
    return Effort(time.monotonic(), cpu_s, queued_s, sum(path.stat().st_size for path in outcomes))


def _tree(process: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(process)
        return [own, *own.children(recursive=True)]
    return []


def _queued(process: int) -> Iterator[float]:
    """Seconds in which each thread waited for a core; none where the system does not tell.

    Source: Linux, Documentation/scheduler/sched-stats.rst: the second figure of schedstat, in nanoseconds.
    """
    for file in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            yield int(file.read_text().split()[1]) / 1e9
