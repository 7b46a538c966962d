"""The order of a set whose classes are drawn in other shares than they have, as a pure function of the seed.

A *period* is N draws, as many as the set has samples, over all lanes. Class c gets exactly q_c of them, its quota, at
places that a seeded permutation of the period decides. So draw t is slot t mod N of period t // N, and its number among
all draws of its class is (t // N) q_c plus a number below q_c. These numbers run through the samples of the class, in a
new permutation for each of its own epochs: a sample is drawn again only after all others of its class. Nothing depends
on the lanes, on ranks or on what was drawn before; a seek costs no more than the next batch.

The quotas are proportional to n_c^q: q = 1 is the set as it is, 0 gives each class the same chance, 1/2 lies between.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition" (1910.09217), section 3,
    equation 1: p_j = n_j^q / Σ n_i^q.
Differs: the shares are exact in each period, instead of expected values.

Legend: N samples · L lanes · K classes · n_c samples of class c · q_c its draws in a period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds

IntArray = NDArray[np.int64]
Sampling = Literal["square_root", "balanced"]
_ROOT_BITS = 40  # of the fraction of a square root, so that quotas are computed in integers, alike on every machine


class OrderByClass:
    """Draws classes by quota; see ``SetOrder``.

    Args:
        labels: (N,), the class of each sample, ≥ 0.
        sampling: how often each class is drawn.
        seed: determines the order.
        global_batch_size: B, an even number.
        lanes: L.

    Attributes:
        counts: int64 (K,), n_c.
        quotas: int64 (K,), q_c; their sum is N.
    """

    def __init__(
        self, labels: NDArray[np.integer], sampling: Sampling, *, seed: int, global_batch_size: int, lanes: int
    ) -> None:
        self.num_samples = len(labels)
        self.seed, self.global_batch_size, self.lanes = seed, global_batch_size, lanes
        self.counts: IntArray = np.bincount(labels).astype(np.int64)
        self.quotas = quotas_of(self.counts.tolist(), sampling)
        self._starts, self._quota_ends = np.cumsum(self.counts) - self.counts, np.cumsum(self.quotas)
        small = self.num_samples <= np.iinfo(np.int32).max
        self._members = np.argsort(labels, kind="stable").astype(np.int32 if small else np.int64)

    def at(self, lanes: IntArray, draws: IntArray) -> tuple[IntArray, IntArray]:
        """See ``SetOrder``; the epochs are those of the sample's class."""
        periods, slots = np.divmod(draws * self.lanes + lanes, self.num_samples)
        slots = seeds.permute(slots, self.num_samples, self.seed, "period", periods)
        classes = np.searchsorted(self._quota_ends, slots, side="right")
        numbers = (periods + 1) * self.quotas[classes] + slots - self._quota_ends[classes]
        counts = self.counts[classes]
        epochs, places = np.divmod(numbers, counts)
        places = seeds.permute(places, counts, self.seed, "class", classes, epochs)
        return self._members[self._starts[classes] + places].astype(np.int64), epochs

    def window_of(self, draw: int) -> tuple[int, int]:
        """See ``SetOrder``: every draw is a window, since consecutive draws have nothing in common."""
        return draw, 1

    def window_samples(self, lane: int, draw: int) -> IntArray:
        """See ``SetOrder``."""
        return self.at(np.array([lane], dtype=np.int64), np.array([draw], dtype=np.int64))[0]


def quotas_of(counts: Sequence[int], sampling: Sampling) -> IntArray:
    """The draws of each class in a period, rounded by largest remainder; int64 (K,).

    A class with samples has at least one draw, a class without has none.

    Args:
        counts: samples of each class.
        sampling: how often each class is drawn.
    """
    roots = {"balanced": lambda n: min(n, 1), "square_root": lambda n: math.isqrt(n << 2 * _ROOT_BITS)}
    weights, total = [roots[sampling](int(count)) for count in counts], sum(counts)
    shares = [divmod(total * weight, sum(weights)) for weight in weights]
    quotas = np.array([whole for whole, _ in shares], dtype=np.int64)
    by_remainder = sorted(range(len(shares)), key=lambda index: -shares[index][1])
    quotas[by_remainder[: total - int(quotas.sum())]] += 1
    return quotas
