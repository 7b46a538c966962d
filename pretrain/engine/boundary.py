"""The boundary of a step: what each rank measured in it, and what all ranks agree on afterwards.

Ranks that train together take equally long for a step, since all wait for the last one in the reduction of gradients.
What tells a slow rank from those that wait for it is the time before that: waiting for data, and forward passes, which
at ZeRO 0 to 2 and with DDP have no collective. (At stage 3 weights are gathered in the forward pass, so part of the
difference is hidden there.)
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
    """Adds up the seconds of the running step without waiting for the device.

    On a GPU a forward pass is timed by events. They are read one step later, when they are long complete, so those
    seconds belong to the step before.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._waited = self._forward = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._last_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds a wait for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Surrounds a forward pass."""
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
    """The contribution of one rank at the boundary of a step; after the gathering every rank has those of all.

    A value that is still on the device is given as a tensor (): reading it earlier would wait for the device twice.

    Attributes:
        loss: mean over the rank's micro-batches.
        batch_digest: sum of their digests.
        bad_samples: samples that were replaced.
        waited_s, forward_s: seconds of its own, see ``StepClock``.
        wants_stop: 1 where the rank was asked to stop.
        has_lost_folder: 1 where the rank found that another job owns the run folder.
        saving: progress of the save in flight, see ``engine.saving``.
        memory_bytes: peak so far; 0 where it is not measured at this step.
        square_sum: of the weights that the rank owns; 0 where it is not measured at this step.
        counts: of its data processes, as many on every rank; empty where they are not measured at this step.
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
        """Those of all ranks, in rank order: one collective and one read by the host. Collective: yes."""
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
        memory_bytes: the largest of the ranks; None where it was not measured.
        weight_norm: of the complete model; None where it was not measured.
        counts: of data processes, sums over the ranks; None where they were not measured.
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
        """From the reports of all ranks; ``measured``: they contain what is measured at some steps only."""
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
    """Peak of the device's allocator so far; on a CPU the largest resident set of the process. No wait."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
