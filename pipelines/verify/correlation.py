"""Are the labels shuffled across the shards? Sets that were packed class by class pass every other check.

Two measures are used. *Neighbours*: how often two neighbours in a shard have the same label. *Mates*: how often any two
samples of one shard do. In a shuffled set both equal the share for any two samples of the set, Σ p². Both are compared
with their values for the same labels in random order, so that a few large classes or small shards raise no alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHUFFLES = 12
MOST_SAMPLES = 1_000_000  # more would add no information: shards are drawn up to this number of labels
LEAST_SAMPLES = 64
ALARM_RATIO = 1.25
ALARM_DEVIATIONS = 8.0


@dataclass(frozen=True)
class Correlation:
    """The measured shares, and those of shuffled labels: (mean, standard deviation).

    Attributes:
        neighbours: share of neighbouring pairs with equal labels.
        mates: share of pairs in one shard with equal labels.
        shuffled_neighbours: the same of shuffled labels.
        shuffled_mates: the same of shuffled labels.
    """

    neighbours: float
    mates: float
    shuffled_neighbours: tuple[float, float]
    shuffled_mates: tuple[float, float]

    @property
    def is_ordered(self) -> bool:
        """Labels are more correlated along the shards than chance explains."""
        return _is_high(self.neighbours, *self.shuffled_neighbours) or _is_high(self.mates, *self.shuffled_mates)

    def __str__(self) -> str:
        return (
            f"neighbours share one in {self.neighbours:.1%} of pairs (shuffled: {self.shuffled_neighbours[0]:.1%}), "
            f"samples of one shard in {self.mates:.1%} (shuffled: {self.shuffled_mates[0]:.1%})"
        )


def label_correlation(shards: list[NDArray[np.int32]]) -> Correlation | None:
    """Measures the labels of every shard, in order; None: too few to measure.

    Args:
        shards: one label per sample; the most specific one if there are several.
    """
    labels, starts = _drawn(shards)
    if len(labels) < LEAST_SAMPLES or len(np.unique(labels)) < 2:
        return None
    generator = np.random.default_rng(0)
    shuffled = np.array([_measure(generator.permutation(labels), starts) for _ in range(SHUFFLES)])
    neighbours, mates = _measure(labels, starts)
    mean, deviation = shuffled.mean(axis=0), shuffled.std(axis=0)
    return Correlation(neighbours, mates, (mean[0], deviation[0]), (mean[1], deviation[1]))


def _drawn(shards: list[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(0).permutation(len(shards))
    taken, count = [], 0
    for index in order:
        taken.append(int(index))
        count += len(shards[index])
        if count >= MOST_SAMPLES:
            break
    chosen = [shards[index] for index in sorted(taken)]
    starts = np.cumsum([0, *(len(shard) for shard in chosen)]).astype(np.int64)
    _, labels = np.unique(np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int32), return_inverse=True)
    return labels.astype(np.int64), starts


def _measure(labels: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[float, float]:
    inside = np.ones(len(labels) - 1, dtype=bool)
    inside[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(labels))] - 1] = False
    equal = labels[1:] == labels[:-1]
    neighbours = float(equal[inside].mean()) if inside.any() else 0.0
    sizes = np.diff(starts)
    shard = np.repeat(np.arange(len(sizes)), sizes)
    _, counts = np.unique(shard * (labels.max() + 1) + labels, return_counts=True)
    pairs = float((sizes * (sizes - 1)).sum())
    return neighbours, float((counts * (counts - 1)).sum()) / pairs if pairs else 0.0


def _is_high(value: float, mean: float, deviation: float) -> bool:
    return value > ALARM_RATIO * mean and value > mean + ALARM_DEVIATIONS * max(deviation, 1e-6)
