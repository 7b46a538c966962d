"""Selects the samples that a run draws from: all except a drop list, or a fixed subset of the rest.

A subset takes n_i samples of shard i, where n_i = floor(m_i f + u_i) grows with the share f and u_i in [0, 1) is hashed
from i. These are the first n_i of a seeded permutation of the shard. So a subset of 1 % is contained in that of 10 %,
every run has the same subset whatever its seed, and memory use does not grow with the number of samples.

Legend: m_i samples of shard i that are not dropped · n_i drawn samples of shard i · f share.
    sample id: position in the canonical order of the complete set
    choice: position among the drawn samples, shard by shard
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.files import digest

IntArray = NDArray[np.int64]
_NONE = np.zeros(0, dtype=np.int64)


class Selection:
    """Choice → sample id.

    Args:
        sizes: int64 (S,), samples of each shard of the complete set.
        dropped: sample ids that are never drawn.
        count: number of the remaining samples to draw; None: all.

    Attributes:
        sizes: int64 (S,), n_i.
    """

    def __init__(self, sizes: IntArray, dropped: IntArray = _NONE, count: int | None = None) -> None:
        self._starts = _starts(sizes)
        self._dropped = np.unique(dropped)
        kept_before = self._starts - np.searchsorted(self._dropped, self._starts)
        self._kept_starts, self._kept = kept_before, np.diff(kept_before)
        self._shift = self._dropped - np.arange(len(self._dropped))  # kept samples before each dropped one
        self._whole = count is None
        self.sizes: IntArray = self._kept if count is None else subset_sizes(self._kept, count)
        self._chosen_starts = _starts(self.sizes)

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


def _starts(sizes: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
