"""Where a run stands: a few integers, from which the stream, the schedule and the random numbers all follow.

Legend: B images per global batch.
"""

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
        skipped_windows: (first, end) positions of the stream that a rollback went past, in the order of the rollbacks.
    """

    step: int = 0
    position: int = 0
    num_updates: int = 0
    skipped_in_a_row: int = 0
    skipped_windows: tuple[tuple[int, int], ...] = ()

    def advance(self, *, batch_size: int, applied: bool) -> TrainState:
        """The state after one step."""
        return replace(
            self,
            step=self.step + 1,
            position=self.position + batch_size,
            num_updates=self.num_updates + applied,
            skipped_in_a_row=0 if applied else self.skipped_in_a_row + 1,
        )

    def past(self, position: int) -> TrainState:
        """This state, but with the stream going on at a later position: the window between the two is not drawn."""
        assert position >= self.position
        return replace(self, position=position, skipped_windows=(*self.skipped_windows, (self.position, position)))

    @property
    def samples_seen(self) -> int:
        """Samples that the weights were trained on: the position less the skipped windows."""
        return self.position - sum(end - first for first, end in self.skipped_windows)

    def progress(self, batch_size: int) -> int:
        """Steps of this batch that the samples seen amount to: the place on the schedule.

        It is ``step`` unless the batch has changed on the way.
        """
        return round(self.samples_seen / batch_size)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainState:
        """From JSON values.

        Raises:
            TypeError: a key that is not known.
        """
        windows = values.get("skipped_windows", [])
        return cls(**{**values, "skipped_windows": tuple((first, end) for first, end in windows)})
