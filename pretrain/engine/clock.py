"""What a rank does by itself in a step, so that a slow one can be told from those that wait for it.

Ranks that train together take equally long for a step, since all wait for the last one in the reduction of gradients.
What tells them apart is the time before that: waiting for data, and forward passes, which at ZeRO 0 to 2 and with DDP
have no collective. (At stage 3 weights are gathered in the forward pass, and part of the difference is lost in that.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Adds up the seconds of the running step; no wait for the device.

    On a GPU a forward pass is timed by events, which are read when the next step ends and they are long over: those
    seconds are of the step before.
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
