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
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pretrain.distributed.collectives import all_gather_rows
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
        wants_stop: 1 if the rank was asked to stop.
        has_lost_folder: 1 if the rank found that another job owns the run folder.
        saving: progress of the save in flight, see ``engine.saving``.
        memory_bytes: peak so far; 0 if not measured at this step.
        square_sum: sum of squares of the weights that the rank owns; 0 if not measured at this step.
        counts: counts of its data processes, equally many on every rank; empty if not measured at this step.
    """

    loss: float | Tensor
    batch_digest: float
    bad_samples: float
    waited_s: float
    forward_s: float
    wants_stop: float = 0.0
    has_lost_folder: float = 0.0
    saving: float = 0.0
    memory_bytes: float = 0.0
    square_sum: float | Tensor = 0.0
    counts: tuple[float, ...] = ()

    def packed(self, device: torch.device) -> Tensor:
        """All values in the order of the fields, float64 (F,) on ``device``; the host does not wait for it.

        float64 holds the loss (fp32), byte counts and digests without rounding.
        """
        values = [*(getattr(self, name) for name in _NUMBERS), *self.counts]
        on_host = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        row = torch.tensor(on_host, dtype=torch.float64).to(device)
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                row[place] = value
        return row

    @classmethod
    def unpacked(cls, values: Sequence[float]) -> RankReport:
        """The inverse of ``packed``, from numbers on the host."""
        return cls(*values[: len(_NUMBERS)], counts=tuple(values[len(_NUMBERS) :]))

    def gathered(self, device: torch.device) -> list[RankReport]:
        """The reports of all ranks, in rank order, by one collective and one host read. Collective: yes."""
        return [RankReport.unpacked(row) for row in all_gather_rows(self.packed(device)[None]).tolist()]


_NUMBERS = [field.name for field in fields(RankReport) if field.name != "counts"]


@dataclass(frozen=True)
class Boundary:
    """The values that all ranks agree on at the end of a step.

    Attributes:
        loss: mean over the ranks.
        batch_digest, bad_samples: sums over the ranks.
        stop: a rank was asked to stop.
        lost: a rank found that the run folder belongs to another job.
        saving: progress of every rank's save in flight.
        times: one entry per rank.
        memory_bytes: maximum over the ranks; None if not measured.
        weight_norm: norm of the complete model; None if not measured.
        counts: of data processes, sums over the ranks; None if not measured.
    """

    loss: float
    batch_digest: int
    bad_samples: int
    stop: bool
    lost: bool
    saving: list[float]
    times: OwnTimes
    memory_bytes: float | None = None
    weight_norm: float | None = None
    counts: list[float] | None = None

    @classmethod
    def of(cls, reports: Sequence[RankReport], *, measured: bool) -> Boundary:
        """Combines the reports of all ranks; ``measured``: they include the values measured only at some steps."""
        return cls(
            loss=sum(float(report.loss) for report in reports) / len(reports),
            batch_digest=int(sum(report.batch_digest for report in reports)),
            bad_samples=int(sum(report.bad_samples for report in reports)),
            stop=any(report.wants_stop for report in reports),
            lost=any(report.has_lost_folder for report in reports),
            saving=[report.saving for report in reports],
            times=OwnTimes([report.waited_s for report in reports], [report.forward_s for report in reports]),
            memory_bytes=max(report.memory_bytes for report in reports) if measured else None,
            weight_norm=math.sqrt(sum(float(report.square_sum) for report in reports)) if measured else None,
            counts=[sum(each) for each in zip(*(report.counts for report in reports), strict=True)]
            if measured
            else None,
        )


def memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocator so far; on a CPU the peak resident set size of the process. Does not wait."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
