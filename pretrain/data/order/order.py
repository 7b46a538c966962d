"""The order of an endless training stream, as a pure function of the seed: (position, rank, world) → samples.

An epoch leaves out r = N mod L samples (a range of the canonical order that advances by r each epoch, so each epoch
leaves out different ones), shuffles the shards of the rest by seed, and cuts their concatenation into L lanes of
P = N // L samples. The samples are permuted inside each window of W positions of a lane. Global batch s takes the next
B / L draws of every lane. There is no state between calls, so a seek costs no more than the next batch.

Lanes make the order independent of the number of ranks: L defines it, and the R ranks share the lanes.

Legend: N samples · B global batch · L lanes · P samples per lane and epoch · W window · R ranks.
    sample id: number in the canonical order (shards in table order, records in shard order)
    rank id: number among the samples that this epoch keeps, in canonical order
    place: number in the concatenation of this epoch's shards
    draw: samples taken from a lane so far, over all epochs; slot = draw × L + lane
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pretrain import seeds
from pretrain.errors import ConfigError, DataError

IntArray = NDArray[np.int64]
_CACHED_EPOCHS = 3
MAX_LANES = 512
ROOMY_DRAWS_PER_LANE = 8


class Lanes(NamedTuple):
    """The lanes of every global batch: ``count`` (L) lanes provide B / L samples each."""

    global_batch_size: int
    count: int

    def draws(
        self, position: int, rank: int = 0, world: int = 1, *, start: int = 0, stop: int | None = None
    ) -> tuple[IntArray, IntArray]:
        """Lane and draw of each of a rank's samples of the global batch at ``position``; see ``Order.batch``.

        Raises:
            ConfigError: the position is not a multiple of L, or R ranks cannot share L lanes.
        """
        check_world(self.global_batch_size, self.count, world)
        if position < 0 or position % self.count:
            raise ConfigError(
                f"the stream cannot start at sample {position}: it is not a multiple of data.lanes ({self.count}); "
                "keep the run's data.lanes and global_batch_size"
            )
        per_rank, per_lane = self.global_batch_size // world, self.global_batch_size // self.count
        offsets = np.arange(start, per_rank if stop is None else stop, dtype=np.int64)
        assert offsets.size == 0 or 0 <= offsets[0] <= offsets[-1] < per_rank, "slice outside the rank's batch"
        if self.count % world == 0:  # each rank has its own lanes
            lane, step_draw = rank * (self.count // world) + offsets // per_lane, offsets % per_lane
        else:  # several ranks share a lane and take consecutive draws
            sharing = world // self.count
            lane = np.full_like(offsets, rank // sharing)
            step_draw = (rank % sharing) * (per_lane // sharing) + offsets
        return lane, position // self.count + step_draw

    def of_rank(self, rank: int, world: int) -> IntArray:
        """The lanes that a rank draws from: its own L / R, or the one that it shares."""
        if self.count % world:
            return np.array([rank * self.count // world], dtype=np.int64)
        return rank * (self.count // world) + np.arange(self.count // world, dtype=np.int64)


class Draws(NamedTuple):
    """Samples to read, in lane order; each field is int64 (b,)."""

    sample_ids: IntArray
    slots: IntArray
    epochs: IntArray


@dataclass(frozen=True)
class _Epoch:
    """The order of the shards in one epoch."""

    hole_start: int
    shard_order: IntArray
    place_starts: IntArray
    kept_starts: IntArray


class Order:
    """Maps each position of the stream to a sample.

    Args:
        sizes: samples of each shard, in table order; may be zero.
        seed: determines the order.
        global_batch_size: B, an even number.
        lanes: L; B / L must be even. Part of the experiment.
        window: W, positions of a lane that are shuffled together.

    Raises:
        ConfigError: L does not fit B.
        DataError: there are fewer samples than lanes.
    """

    def __init__(self, sizes: ArrayLike, *, seed: int, global_batch_size: int, lanes: int, window: int) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.lanes = resolve_lanes(global_batch_size, lanes)
        self.window = window
        self.num_samples = int(self.sizes.sum())
        if self.num_samples < lanes:
            raise DataError(
                f"the training set has {self.num_samples} samples, fewer than the {lanes} lanes that every epoch is "
                "cut into; set data.lanes (and global_batch_size) lower"
            )
        self.samples_per_lane = self.num_samples // lanes
        self.num_left_out = self.num_samples - self.samples_per_lane * lanes
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    @property
    def epoch_samples(self) -> int:
        """Samples that one epoch draws: N without the N mod L samples that it leaves out."""
        return self.samples_per_lane * self.lanes

    def batch(self, position: int, rank: int = 0, world: int = 1, *, start: int = 0, stop: int | None = None) -> Draws:
        """The samples of one rank in the global batch at ``position``, in lane order.

        Args:
            position: samples that all ranks drew before this batch; a multiple of L.
            rank: this rank, of ``world`` ranks.
            world: R.
            start: start of a slice of the rank's B / R samples (such as a micro-batch).
            stop: end of the slice; None: all.

        Raises:
            ConfigError: the position is not a multiple of L, or R ranks cannot share L lanes.
        """
        lane, draw = Lanes(self.global_batch_size, self.lanes).draws(position, rank, world, start=start, stop=stop)
        sample_ids, epochs = self.at(lane, draw)
        return Draws(sample_ids, draw * self.lanes + lane, epochs)

    def at(self, lanes: IntArray, draws: IntArray) -> tuple[IntArray, IntArray]:
        """Sample ids and epochs of single draws: draw ``draws`` of lane ``lanes``; all arrays (b,)."""
        epochs, places = np.divmod(draws, self.samples_per_lane)
        return self._sample_ids(epochs, lanes, places), epochs

    def window_of(self, draw: int) -> tuple[int, int]:
        """First draw and length of the shuffle window around ``draw``, the same in every lane."""
        epoch, place = divmod(draw, self.samples_per_lane)
        first = place - place % self.window
        return epoch * self.samples_per_lane + first, min(self.window, self.samples_per_lane - first)

    def window_samples(self, lane: int, draw: int) -> IntArray:
        """The sample ids of the window around ``draw`` of ``lane``, unshuffled."""
        first, length = self.window_of(draw)
        epoch, place = divmod(first, self.samples_per_lane)
        places = lane * self.samples_per_lane + place + np.arange(length, dtype=np.int64)
        return self._sample_at(self._epoch(epoch), places)

    def left_out(self, epoch: int) -> IntArray:
        """The sample ids that ``epoch`` does not draw, fewer than L."""
        return (self._hole_start(epoch) + np.arange(self.num_left_out)) % self.num_samples

    def _sample_ids(self, epochs: IntArray, lanes: IntArray, places: IntArray) -> IntArray:
        """Sample at position ``places`` of a lane in an epoch; all arrays (b,)."""
        window_index, inside = np.divmod(places, self.window)
        window_size = np.minimum(self.window, self.samples_per_lane - window_index * self.window)
        inside = seeds.permute(inside, window_size, self.seed, "window", epochs, lanes, window_index)
        place = lanes * self.samples_per_lane + window_index * self.window + inside
        sample_ids = np.empty_like(place)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            sample_ids[chosen] = self._sample_at(self._epoch(int(epoch)), place[chosen])
        return sample_ids

    def _sample_at(self, epoch: _Epoch, place: IntArray) -> IntArray:
        index = np.searchsorted(epoch.place_starts, place, side="right") - 1
        kept = epoch.kept_starts[epoch.shard_order[index]] + place - epoch.place_starts[index]
        hole_end = epoch.hole_start + self.num_left_out
        if hole_end > self.num_samples:  # the hole wraps around from the last sample to the first ones
            return kept + (hole_end - self.num_samples)
        return kept + np.where(kept >= epoch.hole_start, self.num_left_out, 0)

    def _hole_start(self, epoch: int) -> int:
        first = int(seeds.hash64(self.seed, "left_out")) % self.num_samples
        return (first + epoch * self.num_left_out) % self.num_samples

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch in self._epochs:
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]
        layout = self._make_epoch(epoch)
        self._epochs[epoch] = layout
        while len(self._epochs) > _CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        return layout

    def _make_epoch(self, epoch: int) -> _Epoch:
        hole_start = self._hole_start(epoch)
        kept_starts = self._kept_before(self._starts, hole_start)
        kept_sizes = np.diff(kept_starts)
        keys = seeds.hash64(self.seed, "shards", epoch, np.arange(len(self.sizes)))
        shard_order = np.argsort(keys, kind="stable").astype(np.int64)
        # an empty shard has the same start as the next one; searchsorted with side "right" then finds the next
        place_starts = np.concatenate([[0], np.cumsum(kept_sizes[shard_order])])[:-1]
        return _Epoch(hole_start, shard_order, place_starts, kept_starts[:-1])

    def _kept_before(self, sample_ids: IntArray, hole_start: int) -> IntArray:
        """The number of kept samples before each sample id."""
        hole_end = hole_start + self.num_left_out
        wrapped = max(0, hole_end - self.num_samples)
        removed = np.minimum(sample_ids, wrapped) + np.clip(sample_ids - hole_start, 0, self.num_left_out - wrapped)
        return sample_ids - removed

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epochs": OrderedDict()}


def default_lanes(global_batch_size: int) -> int:
    """The largest power of two ≤ 512 with an even B / L, which is ≥ 8 if the batch allows.

    Raises:
        ConfigError: B is odd, so its samples do not come in pairs.
    """
    _check_even(global_batch_size)
    powers = [1 << bit for bit in range(MAX_LANES.bit_length())]
    fitting = [lanes for lanes in powers if global_batch_size % (2 * lanes) == 0]
    roomy = [lanes for lanes in fitting if global_batch_size // lanes >= ROOMY_DRAWS_PER_LANE]
    return max(roomy or fitting)


def resolve_lanes(global_batch_size: int, lanes: int | Literal["auto"], num_samples: int | None = None) -> int:
    """Resolves and checks ``data.lanes``.

    Args:
        global_batch_size: B, samples per step.
        lanes: the config's value.
        num_samples: samples of the set, if known: each lane needs at least one.

    Raises:
        ConfigError: B / L is not an even integer, or there are more lanes than samples.
    """
    resolved = default_lanes(global_batch_size) if lanes == "auto" else lanes
    _check_even(global_batch_size)
    if resolved < 1 or global_batch_size % (2 * resolved):
        raise ConfigError(
            f"data.lanes: {resolved} does not fit global_batch_size {global_batch_size}: each lane gives an even "
            f"number of samples to every batch; possible: {_join(_divisors(global_batch_size // 2))}"
        )
    if num_samples is not None and num_samples < resolved:
        raise ConfigError(
            f"data.lanes: {resolved} lanes need at least as many samples, but the set has {num_samples}; "
            f"set data.lanes to one of {_join([n for n in _divisors(global_batch_size // 2) if n <= num_samples])}"
        )
    return resolved


def can_share(global_batch_size: int, lanes: int, ranks: int) -> bool:
    """Whether R ranks can draw the same global batches: R | L, or L | R and R | B with an even B / R."""
    if lanes % ranks == 0:
        return True
    return ranks % lanes == 0 and global_batch_size % (2 * ranks) == 0


def allowed_worlds(global_batch_size: int, lanes: int, up_to: int) -> list[int]:
    """The valid world sizes ≤ ``up_to``, ascending."""
    return [ranks for ranks in range(1, up_to + 1) if can_share(global_batch_size, lanes, ranks)]


def check_world(global_batch_size: int, lanes: int, ranks: int) -> None:
    """Refuses a world size that would change the global batches.

    Raises:
        ConfigError: lists the valid world sizes.
    """
    if ranks < 1 or not can_share(global_batch_size, lanes, ranks):
        worlds = allowed_worlds(global_batch_size, lanes, max(ranks, global_batch_size // 2))
        raise ConfigError(
            f"{ranks} ranks cannot share {lanes} lanes of a global batch of {global_batch_size}; valid world "
            f"sizes: {_join(worlds)}"
        )


def _check_even(global_batch_size: int) -> None:
    if global_batch_size < 2 or global_batch_size % 2:
        raise ConfigError(
            f"global_batch_size: {global_batch_size} is odd, but samples are drawn in pairs; use an even number"
        )


def _divisors(number: int) -> list[int]:
    return [value for value in range(1, number + 1) if number % value == 0]


def _join(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 24 else [*shown[:12], "…", *shown[-12:]])
