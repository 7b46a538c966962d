"""Several sets drawn together by weight, as a pure function: (position, rank, world) → samples.

A *selection* takes the samples of one set that a run draws from: all except a drop list, or a fixed subset of the rest.
A subset takes n_i samples of shard i, where n_i = floor(m_i f + u_i) grows with the share f and u_i in [0, 1) is hashed
from i. These are the first n_i of a seeded permutation of the shard. So a subset of 1 % is contained in that of 10 %,
every run has the same subset whatever its seed, and memory use does not grow with the number of samples.

Each set of a *mixture* keeps its own order, with its own epochs and lanes. Nested rounding assigns draw k of a lane to
a set: of m draws that remain for sets i, i + 1, …, set i gets floor(m w_i / (w_i + w_i+1 + …) + p), where the phase p
in (0, 1) depends on the lane. So the number of draws from a set before k has a closed form, a seek needs no replay, and
the number never differs by more than a few draws from k w_i. Since the lanes' phases are spread evenly, every global
batch has the right share of each set.

Legend: B global batch · L lanes · K sets · k draw of a lane · m draws left to the remaining sets · m_i samples of shard
    i that are not dropped · n_i drawn samples of shard i · f share.
    sample id: position in the canonical order of the complete set
    choice: position among the drawn samples, shard by shard
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.data.order.order import Draws, Lanes
from pretrain.data.order.protocol import SetOrder
from pretrain.errors import ConfigError
from pretrain.files import digest

IntArray = NDArray[np.int64]
QUANTA = 1 << 20  # weights are integer multiples of 1 / this, so that rounding is exact at any k
_NO_SAMPLES = np.zeros(0, dtype=np.int64)


class Selection:
    """Choice → sample id.

    Args:
        sizes: int64 (S,), samples of each shard of the complete set.
        dropped: sample ids that are never drawn.
        count: number of the remaining samples to draw; None: all.

    Attributes:
        sizes: int64 (S,), n_i.
    """

    def __init__(self, sizes: IntArray, dropped: IntArray = _NO_SAMPLES, count: int | None = None) -> None:
        self._starts = _first_of_each(sizes)
        self._dropped = np.unique(dropped)
        kept_before = self._starts - np.searchsorted(self._dropped, self._starts)
        self._kept_starts, self._kept = kept_before, np.diff(kept_before)
        self._shift = self._dropped - np.arange(len(self._dropped))  # kept samples before each dropped one
        self._whole = count is None
        self.sizes: IntArray = self._kept if count is None else subset_sizes(self._kept, count)
        self._chosen_starts = _first_of_each(self.sizes)

    @property
    def num_dropped(self) -> int:
        """Number of samples that are never drawn."""
        return len(self._dropped)

    @property
    def is_all(self) -> bool:
        """Whether every sample is drawn."""
        return self._whole and not self.num_dropped

    @property
    def digest(self) -> str:
        """Digest of the selection."""
        return digest(self._dropped.tobytes() + self.sizes.tobytes())

    def sample_ids(self, choices: IntArray) -> IntArray:
        """The sample id of each choice, in the same shape."""
        if self.is_all:
            return choices
        shards = np.searchsorted(self._chosen_starts, choices, side="right") - 1
        inside = choices - self._chosen_starts[shards]
        return self._in_shards(shards, inside)

    def neighbours(self, sample_id: int, count: int) -> list[int]:
        """The next ``count`` drawn samples of its shard after ``sample_id``, wrapping around at its end."""
        shard = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        inside = np.arange(self.sizes[shard], dtype=np.int64)
        members = np.sort(self._in_shards(np.full_like(inside, shard), inside))
        after = int(np.searchsorted(members, sample_id, side="right"))
        cycle = np.concatenate([members[after:], members[:after]])
        return cycle[cycle != sample_id][:count].tolist()

    def _in_shards(self, shards: IntArray, inside: IntArray) -> IntArray:
        if not self._whole and inside.size:
            inside = seeds.permute(inside, self._kept[shards], "subset", shards)
        kept = self._kept_starts[shards] + inside
        return kept + np.searchsorted(self._shift, kept, side="right")


def subset_sizes(sizes: IntArray, count: int) -> IntArray:
    """Samples per shard in a subset of exactly ``count``; monotone in ``count`` for each shard."""
    offsets = seeds.uniform("subset", np.arange(len(sizes)))

    def taken(share: float) -> IntArray:
        return np.minimum(np.floor(sizes * share + offsets).astype(np.int64), sizes)

    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until they are adjacent floats
        if int(taken(middle).sum()) <= count:
            low = middle
        else:
            high = middle
    if int(taken(high).sum()) <= count:
        return taken(high)
    chosen = taken(low)
    grown = np.flatnonzero(taken(high) > chosen)  # two shards may grow at the same float
    chosen[grown[: count - int(chosen.sum())]] += 1
    return chosen


def _first_of_each(sizes: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@dataclass(frozen=True)
class Part:
    """One set of a mixture: the order of its selected samples, and the id of its first sample."""

    order: SetOrder
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
