"""The boundary of a step: each rank's measurements, and the values that all ranks agree on.

All ranks take equally long for a step, since all wait for the slowest one in the gradient reduction. A slow rank can
only be identified by the time before it: waiting for data, and forward passes, which have no collective with DDP and
ZeRO 0 to 2. (At stage 3 weights are gathered in the forward pass, which hides part of the difference.)
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.distributed.collectives import all_gather_rows
from pretrain.distributed.device import copied_to
from pretrain.telemetry.telemetry import OwnTimes


class StepClock:
    """Accumulates the seconds of the current step without waiting for the device.

    On a GPU a forward pass is timed by events. They are read one step later, when they have completed, so those
    seconds belong to the previous step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._waited = self._forward = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._last_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context that times a wait for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Context that times a forward pass."""
        if self._on_cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.monotonic()
            yield
            self._forward += time.monotonic() - started

    def take(self) -> tuple[float, float]:
        """(seconds waited for data, seconds of forward passes) since the last call."""
        forward = self._forward + sum(start.elapsed_time(end) / 1000 for start, end in self._last_events)
        taken = self._waited, forward
        self._waited = self._forward = 0.0
        self._last_events, self._events = self._events, []
        return taken


@dataclass(frozen=True)
class RankReport:
    """The report of one rank at the boundary of a step; after the gathering every rank has all reports.

    A value that is still on the device is passed as a tensor (): reading it earlier would synchronise twice.

    Attributes:
        loss: mean over the rank's micro-batches.
        batch_digest: sum of the micro-batches' digests.
        bad_samples: samples that were replaced.
        waited_s, forward_s: seconds of this rank, see ``StepClock``.
        grad_norm: norm of the reduced gradient before clipping, equal on all ranks.
        wants_stop: 1 if the rank was asked to stop.
        has_lost_folder: 1 if the rank found that another job owns the run folder.
        wants_save: 1 if by the rank's clock the time for a checkpoint has come.
        saving: progress of the save in flight, see ``engine.saving``.
        copying: progress of the copy to ``checkpoint.mirror``, likewise.
        wants_fast_save, fast_saving: the same for fast checkpoints.
        padding: share of the rank's sequences that is padding; NaN for images of one size.
    """

    loss: float | Tensor
    batch_digest: float
    bad_samples: float
    waited_s: float
    forward_s: float
    grad_norm: float | Tensor = 0.0
    wants_stop: float = 0.0
    has_lost_folder: float = 0.0
    wants_save: float = 0.0
    saving: float = 0.0
    copying: float = 0.0
    wants_fast_save: float = 0.0
    fast_saving: float = 0.0
    padding: float = math.nan

    def gathered(self, device: torch.device) -> list[RankReport]:
        """The reports of all ranks, in rank order, by one collective and one host read. Collective: yes."""
        return [RankReport(*row) for row in _gathered(list(vars(self).values()), device)]


@dataclass(frozen=True)
class RankMeasurement:
    """The measurements of one rank after an update; fields as ``RankReport``'s.

    Attributes:
        memory_bytes: peak so far.
        square_sum: sum of squares of the weights that the rank owns.
        counts: counts of its data processes, equally many on every rank.
    """

    memory_bytes: float
    square_sum: float | Tensor
    counts: tuple[float, ...]

    def gathered(self, device: torch.device) -> list[RankMeasurement]:
        """The measurements of all ranks, in rank order. Collective: yes."""
        rows = _gathered([self.memory_bytes, self.square_sum, *self.counts], device)
        return [RankMeasurement(memory, squares, tuple(counts)) for memory, squares, *counts in rows]


def packed(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Numbers of the host and scalars of the device in one row on ``device``, float64 (F,); the host does not wait.

    float64 holds the loss (fp32), byte counts and digests without rounding.
    """
    on_host = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    row = copied_to(device, torch.tensor(on_host, dtype=torch.float64))
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            row[place] = value
    return row


def _gathered(values: Sequence[float | Tensor], device: torch.device) -> list[list[float]]:
    """Every rank's values, in rank order, on the host of every rank. Collective: equally many on all ranks."""
    return all_gather_rows(packed(values, device)[None]).tolist()


@dataclass(frozen=True)
class Measured:
    """The measurements of all ranks together.

    Attributes:
        memory_bytes: maximum over the ranks.
        weight_norm: norm of the complete model.
        counts: of data processes, sums over the ranks.
    """

    memory_bytes: float
    weight_norm: float
    counts: list[float]

    @classmethod
    def of(cls, ranks: Sequence[RankMeasurement]) -> Measured:
        """Combines the measurements of all ranks."""
        return cls(
            memory_bytes=max(rank.memory_bytes for rank in ranks),
            weight_norm=math.sqrt(sum(float(rank.square_sum) for rank in ranks)),
            counts=[sum(each) for each in zip(*(rank.counts for rank in ranks), strict=True)],
        )


@dataclass(frozen=True)
class Boundary:
    """The values that all ranks agree on in a step.

    Attributes:
        loss: mean over the ranks.
        grad_norm: rank 0's, so that all ranks decide alike.
        batch_digest, bad_samples: sums over the ranks.
        stop: a rank was asked to stop.
        lost: a rank found that the run folder belongs to another job.
        save: the time for a checkpoint has come; rank 0 decides, since the clocks of ranks differ.
        saving: progress of every rank's save in flight.
        copying: progress of every rank's copy in flight.
        fast_save, fast_saving: the same for fast checkpoints.
        times: one entry per rank.
        padding: mean over the ranks; NaN for images of one size.
        measured: None unless the step's line is due.
    """

    loss: float
    grad_norm: float
    batch_digest: int
    bad_samples: int
    stop: bool
    lost: bool
    save: bool
    saving: list[float]
    copying: list[float]
    fast_save: bool
    fast_saving: list[float]
    times: OwnTimes
    padding: float = math.nan
    measured: Measured | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The numbers of the step itself."""
        return {"loss": self.loss, "grad_norm": self.grad_norm, "batch_digest": self.batch_digest}

    @property
    def of_sequences(self) -> dict[str, float]:
        """The metrics of padded sequences; none for images of one size."""
        return {} if math.isnan(self.padding) else {"padding": self.padding}

    @classmethod
    def of(cls, reports: Sequence[RankReport]) -> Boundary:
        """Combines the reports of all ranks."""
        return cls(
            loss=sum(float(report.loss) for report in reports) / len(reports),
            grad_norm=float(reports[0].grad_norm),
            batch_digest=int(sum(report.batch_digest for report in reports)),
            bad_samples=int(sum(report.bad_samples for report in reports)),
            stop=any(report.wants_stop for report in reports),
            lost=any(report.has_lost_folder for report in reports),
            save=bool(reports[0].wants_save),
            saving=[report.saving for report in reports],
            copying=[report.copying for report in reports],
            fast_save=bool(reports[0].wants_fast_save),
            fast_saving=[report.fast_saving for report in reports],
            times=OwnTimes([report.waited_s for report in reports], [report.forward_s for report in reports]),
            padding=sum(report.padding for report in reports) / len(reports),
        )


def memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocator so far; on a CPU the peak resident set size of the process. Does not wait."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
