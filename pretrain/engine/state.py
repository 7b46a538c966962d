"""The position of a run: a few integers, of which the stream, the schedule and the random numbers are functions.

Legend: B images per global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pretrain.config.batches import Batches


@dataclass(frozen=True)
class TrainState:
    """The complete position of a run.

    Attributes:
        step: optimiser steps taken, skipped updates included.
        position: samples drawn from the stream (step × B unless the batch changed or windows were skipped).
        num_updates: steps whose update was applied: the optimiser's own counter.
        skipped_in_a_row: updates skipped since the last applied one.
        skipped_windows: (first, end) positions of the stream that rollbacks skipped, in the order of the rollbacks.
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
        """This state with the stream at a later position; the window in between is not drawn."""
        assert position >= self.position
        return replace(self, position=position, skipped_windows=(*self.skipped_windows, (self.position, position)))

    @property
    def samples_seen(self) -> int:
        """Samples that the weights were trained on: the position minus the skipped windows."""
        return self.position - sum(end - first for first, end in self.skipped_windows)

    def progress(self, batches: Batches) -> int:
        """Position on the schedule: the number of steps of these batches that amount to the samples seen.

        Equal to ``step`` unless the settings of the batch have changed during the run.
        """
        return batches.step(self.samples_seen)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> TrainState:
        """From JSON values.

        Raises:
            TypeError: an unknown key.
        """
        windows = values.get("skipped_windows", [])
        return cls(**{**values, "skipped_windows": tuple((first, end) for first, end in windows)})


@dataclass(frozen=True)
class Cadence:
    """The length of a run, its batch size, and what is due at which step.

    Attributes:
        num_steps: length of the complete schedule.
        batches: images of each step.
        accumulation_steps: micro-batches per rank and step.
        evaluate_every, save_every: intervals in steps; None: only at the end.
        save_every_s: seconds since the last checkpoint after which one is due; None: time does not matter.
        tiling_at: position on the schedule → metrics of the step's images, where their sizes change.
    """

    num_steps: int
    batches: Batches
    accumulation_steps: int = 1
    evaluate_every: int | None = None
    save_every: int | None = None
    save_every_s: float | None = None
    tiling_at: Callable[[int], Mapping[str, int]] = lambda step: {}

    def last_step(self, state: TrainState) -> int:
        """The step at which the run ends: ``num_steps`` unless the batch size has changed during the run."""
        return state.step + self.num_steps - state.progress(self.batches)

    def tiling_before(self, state: TrainState) -> Mapping[str, int]:
        """Metrics of the images of the step that led to ``state``."""
        step = state.progress(self.batches) - 1
        return {**self.tiling_at(step), **({"batch_size": self.batches.size(step)} if self.batches.vary else {})}

    def batch_size(self, state: TrainState) -> int:
        """Images of the step after ``state``."""
        return self.batches.size(state.progress(self.batches))

    def skipped_from(self, state: TrainState) -> int:
        """The position of the first of the updates that were skipped in a row."""
        progress = state.progress(self.batches)
        return state.position - self.batches.before(progress) + self.batches.before(progress - state.skipped_in_a_row)

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due at a step before the last."""
        return bool(self.evaluate_every) and step % self.evaluate_every == 0

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due by training at a step before the last."""
        return bool(self.save_every) and step % self.save_every == 0

    def saves_after(self, seconds: float) -> bool:
        """Whether a checkpoint is due by time, this long after the last one."""
        return self.save_every_s is not None and seconds >= self.save_every_s
