"""A checkpoint on its way to the disk: this rank's part of the work runs in a thread while the training goes on.

Every rank's progress travels with the meeting at the end of a step, so all of them know at the same boundary when every
slice is written, and when the checkpoint is complete; a thread never takes part in a collective.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

# What a rank says at a boundary.
FAILED, IDLE, WRITING, WRITTEN, COMPLETING, COMPLETE = -1, 0, 1, 2, 3, 4
_BUSY = (WRITING, COMPLETING)

_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")


@dataclass
class Save:
    """One save in flight, in two parts: every rank writes its slices, then rank 0 completes the checkpoint.

    Attributes:
        step: of the checkpoint.
        temporary, final: where it is written, and its name once it is complete.
        state: what the checkpoint says about where the run stands.
        marker: what COMPLETE.json says beside files and norms.
        statistics: running statistics of the model, copied to host memory.
        began: when (``time.monotonic``).
    """

    step: int
    temporary: Path
    final: Path
    state: dict[str, Any]
    marker: dict[str, Any]
    statistics: dict[str, Tensor]
    began: float
    _busy: int = IDLE
    _future: Future[Any] | None = field(default=None, repr=False)

    def start(self, work: Callable[[], Any] | None, busy: int) -> None:
        """Begins a part in the thread; None: this rank has nothing to do in it."""
        self._busy = busy
        self._future = None if work is None else _thread.submit(work)

    @property
    def progress(self) -> int:
        """What this rank says at a boundary."""
        if self._future is None:
            return self._busy + 1
        if not self._future.done():
            return self._busy
        return FAILED if self._future.exception() is not None else self._busy + 1

    def join(self) -> None:
        """Waits for this rank's part."""
        if self._future is not None:
            wait([self._future])

    @property
    def result(self) -> Any:
        """What a part that is done has returned."""
        assert self._future is not None
        return self._future.result()

    @property
    def error(self) -> BaseException | None:
        """Why this rank's part failed, or None."""
        return None if self._future is None else self._future.exception()


def all_ranks_are(progress: list[float]) -> int:
    """What all ranks are: the part in which somebody is still busy, FAILED if anybody is, else what all have done."""
    busy = [each for each in progress if each in _BUSY]
    return int(min(busy or progress))
