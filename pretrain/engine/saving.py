"""A checkpoint in flight, written by a thread while training continues.

Every rank reports its progress at the boundary of each step, so all ranks learn at the same boundary when every slice
is written and when the checkpoint is complete. The thread never takes part in a collective, which would interleave with
those of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain import threads
from pretrain.engine.backend import EMA, MASTER
from pretrain.engine.retention import Retention
from pretrain.errors import CheckpointError

# Progress of a save, as a rank reports it at a boundary.
FAILED, IDLE, WRITING, WRITTEN, COMPLETING, COMPLETE = -1, 0, 1, 2, 3, 4
BUSY = (WRITING, COMPLETING)

# One thread for all saves: their parts run in the order in which they were submitted, never two at once.
_thread = threads.pool("checkpoint", 1)


@dataclass(frozen=True)
class Origin:
    """The training that a checkpoint comes from, saved with it and compared when it is loaded.

    Attributes:
        config_yaml: the resolved config, saved as config.resolved.yaml.
        config_digest: digest of the settings that decide the result.
        data_digest: digest of the data that the stream draws from.
        precision: fp32, autocast or bf16.
    """

    config_yaml: str
    config_digest: str
    data_digest: str
    precision: str


@dataclass(frozen=True)
class SavePolicy:
    """How checkpoints are written and which are kept.

    Attributes:
        retention: which complete checkpoints are kept.
        asynchronous: training continues while the files are written.
        stop_on_error: a save that fails ends the run; otherwise it is reported and the run continues.
    """

    retention: Retention
    asynchronous: bool = True
    stop_on_error: bool = True


@dataclass
class InFlight:
    """Work of this rank in a thread, in parts; its progress is reported to the other ranks at boundaries."""

    _busy: int = field(default=IDLE, init=False)
    _future: Future[Any] | None = field(default=None, init=False, repr=False)

    def start(self, work: Callable[[], Any] | None, busy: int, pool: Executor | None = None) -> None:
        """Submits a part to a thread (that of the saves, if none is given); None: this rank has nothing to do in it."""
        self._busy = busy
        self._future = None if work is None else (pool or _thread).submit(work)

    def is_in(self, part: int) -> bool:
        """Whether this is the part that was submitted last."""
        return self._busy == part

    @property
    def progress(self) -> int:
        """Progress of this rank, to be reported at a boundary."""
        if self._future is None:
            return self._busy + 1
        if not self._future.done():
            return self._busy
        return FAILED if self._future.exception() is not None else self._busy + 1

    def join(self, limit_s: float | None = None) -> None:
        """Waits for this rank's part, at most ``limit_s``."""
        if self._future is not None:
            wait([self._future], limit_s)

    @property
    def result(self) -> Any:
        """The value that a finished part returned."""
        assert self._future is not None
        return self._future.result()

    @property
    def error(self) -> BaseException | None:
        """Why this rank's part failed; None if it did not, or has not ended."""
        return self._future.exception() if self._future is not None and self._future.done() else None


@dataclass
class Save(InFlight):
    """One save in flight, in two parts: every rank writes its slices, then rank 0 completes the checkpoint.

    Attributes:
        step: of the checkpoint.
        temporary, final: the folder it is written to, and its name once complete.
        state: the position of the run.
        marker: the content of COMPLETE.json without files and norms.
        statistics: running statistics of the model, copied to host memory.
        began: start time (``time.monotonic``).
        files: name → size and hash of the slices of all ranks, once they are written.
    """

    step: int
    temporary: Path
    final: Path
    state: dict[str, Any]
    marker: dict[str, Any]
    statistics: dict[str, Tensor]
    began: float
    files: dict[str, Any] = field(default_factory=dict)


def all_ranks_are(progress: list[float]) -> int:
    """Combined progress of all ranks: the part in which any is busy, else FAILED if any failed, else the part done."""
    busy = [each for each in progress if each in BUSY]
    return int(min(busy or progress))


def bytes_to_write(tensors: Mapping[str, Tensor]) -> int:
    """Bytes on disk due to this rank's slices; weights are also written to the plain weights files."""
    return sum(tensor.nbytes * (2 if key.split(":", 1)[0] in (MASTER, EMA) else 1) for key, tensor in tensors.items())


def no_space(folder: Path, needed_bytes: int, free_bytes: int) -> CheckpointError | None:
    """The error if a checkpoint does not fit on the disk, or None."""
    if needed_bytes <= free_bytes:
        return None
    return CheckpointError(
        f"no space for a checkpoint in {folder}: {needed_bytes / 2**30:.3f} GiB are needed, "
        f"{free_bytes / 2**30:.3f} GiB are free; free some, or keep fewer (checkpoint.keep_last, checkpoint.keep_every)"
    )
