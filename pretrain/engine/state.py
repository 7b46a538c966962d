"""Where a run stands: a few integers, from which the stream, the schedule and the random numbers all follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class TrainState:
    """The whole position of a run.

    Attributes:
        step: optimiser steps taken, skipped updates included.
        position: samples drawn from the stream (step × B unless the batch changed or windows were skipped).
        num_updates: steps whose update was applied: the optimiser's own counter.
        skipped_in_a_row: updates skipped since the last applied one.
    """

    step: int = 0
    position: int = 0
    num_updates: int = 0
    skipped_in_a_row: int = 0

    def advance(self, *, batch_size: int, applied: bool) -> TrainState:
        """The state after one step."""
        return replace(
            self,
            step=self.step + 1,
            position=self.position + batch_size,
            num_updates=self.num_updates + applied,
            skipped_in_a_row=0 if applied else self.skipped_in_a_row + 1,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
