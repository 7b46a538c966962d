"""Collects what each step reports and writes it every few steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import checked
from pretrain.telemetry.sinks import Sink


class Telemetry:
    """Averages over the steps since the last line; active sinks exist on rank 0 only.

    Args:
        sinks: where lines go.
        reporter: the terminal.
        log_every: steps between two lines.
        batch_size: samples per step, over all ranks.
        num_samples: samples of one epoch.
    """

    def __init__(
        self, sinks: Sequence[Sink], reporter: Reporter, *, log_every: int, batch_size: int, num_samples: int
    ) -> None:
        self.reporter = reporter
        self._sinks, self._log_every = sinks, log_every
        self._batch_size, self._num_samples = batch_size, num_samples
        self._mark()

    def _mark(self) -> None:
        self._since, self._steps, self._waited = time.monotonic(), 0, 0.0

    def event(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes one line at once (evaluation, save, resume); its time does not count as training."""
        for sink in self._sinks:
            sink.write(kind, step, checked(values))
        self._mark()

    def step(self, step: int, position: int, values: dict[str, Any], *, waited_s: list[float]) -> None:
        """Takes one training step.

        Args:
            step: the step just finished, counted from 1.
            position: samples drawn so far.
            values: the step's own numbers.
            waited_s: seconds that each rank waited for data.
        """
        self._steps += 1
        self._waited += max(waited_s)
        elapsed = time.monotonic() - self._since
        rate = self._steps * self._batch_size / elapsed if elapsed else 0.0
        self.reporter.advance(step, {"loss": f"{values['loss']:.4f}", "images/s": f"{rate:.0f}"})
        if step % self._log_every:
            return
        line = {
            **values,
            "images_per_s": rate,
            "step_s": elapsed / self._steps,
            "data_wait": min(1.0, self._waited / elapsed) if elapsed else 0.0,
            "epoch": position / self._num_samples,
            "samples": position,
            "memory_gib": _memory_gib(),
        }
        for sink in self._sinks:
            sink.write("train", step, checked(line))
        self._mark()

    def close(self) -> None:
        """Ends the bar and closes the sinks."""
        self.reporter.stop()
        for sink in self._sinks:
            sink.close()


def _memory_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
