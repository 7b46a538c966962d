"""Several sets drawn together by weight, as a pure function: (position, rank, world) → samples.

Each set keeps its own order, with its own epochs and lanes. Nested rounding assigns draw k of a lane to a set: of m
draws that remain for sets i, i + 1, …, set i gets floor(m w_i / (w_i + w_i+1 + …) + p), where the phase p in (0, 1)
depends on the lane. So the number of draws from a set before k has a closed form, a seek needs no replay, and the
number never differs by more than a few draws from k w_i. Since the lanes' phases are spread evenly, every global batch
has the right share of each set.

Legend: B global batch · L lanes · K sets · k draw of a lane · m draws left to the remaining sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.data.order.order import Draws, Lanes, Order
from pretrain.data.order.selection import Selection
from pretrain.errors import ConfigError

IntArray = NDArray[np.int64]
QUANTA = 1 << 20  # weights are integer multiples of 1 / this, so that rounding is exact at any k


@dataclass(frozen=True)
class Part:
    """One set of a mixture: the order of its selected samples, and the id of its first sample."""

    order: Order
    selection: Selection
    first_sample_id: int = 0


class Window(NamedTuple):
    """A shuffle window of one lane of one set: its samples are drawn close together.

    Attributes:
        part: index of the set.
        lane: index of the lane.
        draw: the first of its draws.
        progress: fraction of the window that was drawn, 0 … 1.
        next_draw: the first draw of the window after it.
    """

    part: int
    lane: int
    draw: int
    progress: float
    next_draw: int


class Mixture:
    """Maps each position of the stream to a sample.

    Args:
        parts: the sets.
        weights: relative shares of the draws; not needed for one set.
        seed: determines the lanes' phases.
        copies: of each image in a global batch (repeated augmentation).

    Raises:
        ConfigError: a weight is too small compared with the others, or there are more copies than lanes.
    """

    def __init__(
        self, parts: Sequence[Part], weights: Sequence[float] = (1.0,), *, seed: int = 0, copies: int = 1
    ) -> None:
        assert len(parts) == len(weights) > 0
        self.parts = tuple(parts)
        self.global_batch_size, self.lanes = parts[0].order.global_batch_size, parts[0].order.lanes
        self._lanes = Lanes(self.global_batch_size, self.lanes)
        self.quanta, self.copies = in_quanta(weights), copies
        check_copies(copies, self.global_batch_size, self.lanes)
        lanes = np.arange(self.lanes)
        self._phases = [seeds.permute(lanes, self.lanes, seed, "mixture", level) for level in range(len(parts) - 1)]

    def batch(self, position: int, rank: int = 0, world: int = 1, *, start: int = 0, stop: int | None = None) -> Draws:
        """Like ``Order.batch``; sample ids are numbered consecutively across the sets, and epochs are per set."""
        place = self._lanes.draws(position, rank, world, start=start, stop=stop)
        lane, draw, _ = self._inner(position, *place)
        before, after = self.counts(lane, draw), self.counts(lane, draw + 1)
        chosen = np.argmax(after - before, axis=0)
        sample_ids, epochs = np.empty_like(lane), np.empty_like(lane)
        for index, part in enumerate(self.parts):
            mine = chosen == index
            if mine.any():
                choices, epochs[mine] = part.order.at(lane[mine], before[index][mine])
                sample_ids[mine] = part.first_sample_id + part.selection.sample_ids(choices)
        return Draws(sample_ids, place[1] * self.lanes + place[0], epochs)

    def copy_numbers(self, slots: IntArray) -> IntArray | None:
        """The index among the copies of an image for each of these slots of one batch; None: no repetition."""
        if self.copies == 1:
            return None
        draws, lanes = np.divmod(slots, self.lanes)
        return copies_of(
            lanes, draws, copies=self.copies, global_batch_size=self.global_batch_size, num_lanes=self.lanes
        ).copies

    def _inner(self, position: int, lane: IntArray, draw: IntArray) -> Copies:
        """The inner draws at these places; without repetition, the places themselves."""
        if self.copies == 1:
            return Copies(lane, draw, np.zeros_like(lane))
        if position % self.global_batch_size:
            raise ConfigError(
                f"the stream cannot start at sample {position}: with data.repeated_augmentation it starts at multiples "
                f"of global_batch_size ({self.global_batch_size}); keep the run's global_batch_size"
            )
        return copies_of(lane, draw, copies=self.copies, global_batch_size=self.global_batch_size, num_lanes=self.lanes)

    def counts(self, lane: IntArray, draw: IntArray) -> IntArray:
        """int64 (K, …): the number of draws from each set in a lane before ``draw``."""
        left, weight_left, counts = draw, QUANTA, []
        for level, phases in enumerate(self._phases):
            weight = self.quanta[level]
            # floor(left · weight / weight_left + phase) in integers; exact below 2^33 draws of 512 lanes
            phase = (2 * phases[lane] + 1) * weight_left
            taken = (2 * self.lanes * left * weight + phase) // (2 * self.lanes * weight_left)
            counts.append(taken)
            left, weight_left = left - taken, weight_left - weight
        return np.stack([*counts, left])

    def windows(self, position: int, rank: int, world: int) -> list[Window]:
        """The current window of each of a rank's lanes, set by set, after ``position`` samples were drawn."""
        lanes = self._lanes.of_rank(rank, world)
        draws = np.full_like(lanes, position // self.lanes)
        if self.copies > 1:
            drawn = self._inner(position, *self._lanes.draws(position, rank, world))
            lanes, first = np.unique(drawn.lanes, return_index=True)
            draws = drawn.draws[first]
        counts = self.counts(lanes, draws)
        return [
            self._window(index, int(lane), int(counts[index, row]))
            for row, lane in enumerate(lanes)
            for index in range(len(self.parts))
        ]

    def window_samples(self, part: int, lane: int, draw: int) -> IntArray:
        """The samples of the window that contains ``draw``, ascending, numbered within their set."""
        chosen = self.parts[part]
        return np.sort(chosen.selection.sample_ids(chosen.order.window_samples(lane, draw)))

    def _window(self, part: int, lane: int, draw: int) -> Window:
        first, length = self.parts[part].order.window_of(draw)
        return Window(part, lane, first, (draw - first) / length, first + length)


def in_quanta(weights: Sequence[float]) -> list[int]:
    """Weights as integers that sum to ``QUANTA``, rounded by largest remainder.

    Raises:
        ConfigError: a weight is less than a millionth of their sum.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * QUANTA
    quanta = np.floor(shares).astype(np.int64)
    missing = QUANTA - int(quanta.sum())
    quanta[np.argsort(quanta - shares, kind="stable")[:missing]] += 1
    if quanta.min() < 1:
        raise ConfigError(
            f"data.mixture: weight {weights[int(quanta.argmin())]:g} is less than a millionth of all weights together; "
            "leave that set out, or weigh it more"
        )
    return quanta.tolist()


IntArray = NDArray[np.int64]


class Copies(NamedTuple):
    """For each draw, the inner draw that it copies; int64 (b,) each.

    Attributes:
        lanes: of the inner stream.
        draws: of that lane.
        copies: index of the copy, 0 … k − 1.
    """

    lanes: IntArray
    draws: IntArray
    copies: IntArray


def copies_of(lanes: IntArray, draws: IntArray, *, copies: int, global_batch_size: int, num_lanes: int) -> Copies:
    """The inner draws at these places of one global batch.

    Args:
        lanes: (b,) of the stream.
        draws: (b,) of those lanes, all of one global batch.
        copies: k.
        global_batch_size: B.
        num_lanes: L.
    """
    per_lane = global_batch_size // num_lanes
    if not lanes.size:
        return Copies(lanes, draws, np.zeros_like(lanes))
    batch, images = int(draws[0]) // per_lane, -(-global_batch_size // copies)
    rows = lanes * per_lane + draws - batch * per_lane
    numbers = batch * images + np.arange(images, dtype=np.int64)
    numbers = numbers[np.argsort(numbers % num_lanes, kind="stable")]
    copy, image = np.divmod(rows, images)
    return Copies(numbers[image] % num_lanes, numbers[image] // num_lanes, copy)


def check_copies(copies: int, global_batch_size: int, num_lanes: int) -> None:
    """Refuses more copies than lanes, since two copies of an image would be in one lane.

    Raises:
        ConfigError: more copies than lanes.
    """
    if copies > num_lanes:
        raise ConfigError(
            f"data.repeated_augmentation: {copies} copies of an image need as many lanes, but data.lanes is {num_lanes}"
            f" (global_batch_size {global_batch_size}); use at most {num_lanes} copies, or more lanes"
        )
