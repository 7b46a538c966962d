"""Collects what each step reports and writes it every few steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import SIZES, Delayed, Sink, checked

SLOW_RATIO = 1.5  # a rank is slow whose own time is so many times the median rank's,
SLOW_SHARE = 0.1  # and if that costs this share of a step


class OwnTimes(NamedTuple):
    """Seconds that each rank spent on its own work in a step: one entry per rank."""

    waited_s: list[float]
    forward_s: list[float]

    def by_rank(self) -> list[float]:
        """Both together."""
        return [sum(pair) for pair in zip(*self, strict=True)]


@dataclass(frozen=True)
class Work:
    """The content of a step, from which rates are computed.

    Attributes:
        batch_size: images per step, over all ranks, where the metric ``batch_size`` does not give them.
        world: ranks.
        num_samples: images of an epoch.
        flops_per_image: of training, without what is computed again; None: not known.
        flops_by_tiling: the same for each set of a step's ``SIZES``, (name, value); empty: not known apart.
        peak_flops: FLOP/s of one device at best; None: not known, and no MFU.
    """

    batch_size: int
    world: int
    num_samples: int
    flops_per_image: float | None = None
    peak_flops: float | None = None
    flops_by_tiling: Mapping[frozenset[tuple[str, int]], float] = field(default_factory=dict)

    def flops_of(self, values: Mapping[str, Any]) -> float | None:
        """FLOPs of training on one image of a step with these metrics."""
        if not self.flops_by_tiling:
            return self.flops_per_image
        return self.flops_by_tiling[frozenset((name, values[name]) for name in SIZES if name in values)]

    def mfu(self, images_per_s: float, flops_per_image: float | None = None) -> float | None:
        """Model FLOPs utilisation at this rate of the job; ``flops_per_image`` replaces those of the whole run.

        Source: Chowdhery et al., "PaLM" (2204.02311), appendix B.
        """
        flops_per_image = self.flops_per_image if flops_per_image is None else flops_per_image
        if flops_per_image is None or self.peak_flops is None:
            return None
        return images_per_s * flops_per_image / (self.peak_flops * self.world)


class Telemetry:
    """Averages over the steps since the last line; active sinks exist on rank 0 only.

    Args:
        sinks: the destinations; one that fails is reported and gets no more lines.
        reporter: the terminal.
        log_every: steps between two lines.
        work: the content of a step.
    """

    def __init__(self, sinks: Sequence[Sink], reporter: Reporter, *, log_every: int, work: Work) -> None:
        self.reporter = reporter
        self._sinks, self._log_every, self._work = list(sinks), log_every, work
        self._named: int | None = None
        self._delayed: set[int] = set()
        self._mark()

    def _mark(self) -> None:
        self._since, self._steps, self._waited = time.monotonic(), 0, 0.0
        self._flops: list[float | None] = []  # per image, of each step
        self._own = [0.0] * self._work.world
        self._images: list[int] = []  # of each step

    def is_due(self, step: int) -> bool:
        """Whether a line is written at this step."""
        return step % self._log_every == 0

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes one line at once (evaluation, save, resume); its time does not count as training."""
        self._write(kind, step, values)
        self._mark()

    def step(self, step: int, position: int, values: dict[str, Any], times: OwnTimes) -> None:
        """Takes one training step.

        Args:
            step: the step just finished, counted from 1.
            position: samples drawn so far.
            values: the step's own numbers.
            times: of all ranks.
        """
        self._images.append(values.get("batch_size", self._work.batch_size))
        self._steps += 1
        self._waited += max(times.waited_s)
        flops = self._work.flops_of(values)
        self._flops.append(flops)
        self._own = [total + own for total, own in zip(self._own, times.by_rank(), strict=True)]
        speed = self._speed()
        self.reporter.advance(step, {**values, **speed})
        if self.is_due(step):
            progress: dict[str, float] = {"epoch": position / self._work.num_samples, "samples": position}
            if flops is not None:
                progress["flops"] = flops * self._images[-1]
            self._write("train", step, {**values, **speed, **progress})
            self._name_slow_rank(step, int(speed["slowest_rank"]), speed["step_s"])
            self._mark()

    def _name_slow_rank(self, step: int, rank: int, step_s: float) -> None:
        """Says once which rank the others wait for, until another one is or none."""
        own, typical = self._own[rank] / self._steps, statistics.median(self._own) / self._steps
        is_slow = own > SLOW_RATIO * typical and own - typical > SLOW_SHARE * step_s
        if is_slow and rank != self._named:
            self.reporter.say(
                f"step {step}: rank {rank} is slow: {own:.3f} s of its own in a step (data and forward pass), the "
                f"median rank {typical:.3f} s; its heartbeat in the folder heartbeats/ names its host"
            )
        self._named = rank if is_slow else None

    def _speed(self) -> dict[str, float]:
        elapsed = time.monotonic() - self._since
        rate = sum(self._images) / elapsed if elapsed else 0.0
        slowest = max(range(len(self._own)), key=self._own.__getitem__)
        typical = statistics.median(self._own)
        known = [pair for pair in zip(self._images, self._flops, strict=True) if pair[1] is not None]
        total = sum(images * flops for images, flops in known if flops is not None)
        mfu = self._work.mfu(rate, total / sum(images for images, _ in known) if known else None)
        return {
            "images_per_s": rate,
            "images_per_s_per_device": rate / self._work.world,
            **({} if mfu is None else {"mfu": mfu}),
            "step_s": elapsed / self._steps,
            "data_wait": min(1.0, self._waited / elapsed) if elapsed else 0.0,
            "slowest_rank": slowest,
            "slowest_rank_ratio": self._own[slowest] / typical if typical else 1.0,
        }

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        line = checked(dict(values))
        for sink in list(self._sinks):
            self._attempt(sink, lambda sink=sink: sink.write(kind, step, line))

    def _attempt(self, sink: Sink, action: Callable[[], None]) -> None:
        try:
            action()
            self._delayed.discard(id(sink))
        except Delayed as error:
            if id(sink) not in self._delayed:
                self._delayed.add(id(sink))
                self.reporter.say(f"warning: {error}; the training continues, and the waiting lines are tried again")
        except Exception as error:  # of somebody else's library, or a full disk: no reason to end a run
            self._sinks.remove(sink)
            self.reporter.say(
                f"warning: {type(sink).__name__} failed and gets no more lines: {type(error).__name__}: {error}"
            )

    def close(self) -> None:
        """Ends the live view and closes the sinks."""
        self.reporter.stop()
        self._delayed.clear()  # lines that still wait at the end are reported again
        for sink in list(self._sinks):
            self._attempt(sink, sink.close)
