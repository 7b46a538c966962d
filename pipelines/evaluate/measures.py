"""Figures that follow from what a model said of every image. Pure functions of arrays.

Legend: N images · K classes · M most labels of an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.outcomes import Outcomes

NUM_BINS = 15
RESAMPLES = 10_000
Floats = NDArray[np.float64]


class ClassRow(NamedTuple):
    """One class: how many images have it, and how the model did on them (None: no image to judge by)."""

    index: int
    num_samples: int
    recall: float | None
    precision: float | None


class Bin(NamedTuple):
    """Images whose confidence lies in (low, high]: how many, how sure the model was, how often it was right."""

    low: float
    high: float
    num_samples: int
    confidence: float
    accuracy: float


def accuracy(outcomes: Outcomes) -> dict[str, float]:
    """``top1``, ``top5`` and ``num_samples``; with several labels per image top1 is precision@1."""
    num_samples = len(outcomes.sample_ids)
    counted = max(num_samples, 1)
    return {
        "top1": float(outcomes.hits.sum()) / counted,
        "top5": float(outcomes.hits_in_best.sum()) / counted,
        "num_samples": num_samples,
    }


def per_class(outcomes: Outcomes, num_classes: int) -> list[ClassRow]:
    """Recall and precision of the best class alone, for each class."""
    said = np.bincount(outcomes.best[:, 0], minlength=num_classes)
    right = np.bincount(outcomes.best[outcomes.hits, 0], minlength=num_classes)
    there = np.bincount(outcomes.labels[outcomes.labels >= 0], minlength=num_classes)
    return [
        ClassRow(
            index,
            int(there[index]),
            right[index] / there[index] if there[index] else None,
            right[index] / said[index] if said[index] else None,
        )
        for index in range(num_classes)
    ]


def confusion(outcomes: Outcomes, num_classes: int) -> NDArray[np.int64]:
    """int64 (K, K): row = the image's label, column = the best class. For sets with one label per image."""
    assert outcomes.labels.shape[1] == 1
    pairs = outcomes.labels[:, 0] * num_classes + outcomes.best[:, 0]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(outcomes: Outcomes) -> tuple[float, list[Bin]]:
    """The expected calibration error, and the bins of a reliability diagram (empty ones left out).

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3, with 15 bins of equal width.
    """
    which = np.clip(np.ceil(outcomes.confidence.astype(np.float64) * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    bins, error = [], 0.0
    for number in range(NUM_BINS):
        inside = which == number
        if count := int(inside.sum()):
            sure, right = float(outcomes.confidence[inside].mean(dtype=np.float64)), float(outcomes.hits[inside].mean())
            error += count / len(which) * abs(sure - right)
            bins.append(Bin(number / NUM_BINS, (number + 1) / NUM_BINS, count, sure, right))
    return error, bins


def paired_difference(first: Outcomes, second: Outcomes, *, seed: int = 0) -> dict[str, Any]:
    """How much better the second model's top-1 is on the same images, with a 95 % bootstrap interval.

    An image contributes −1, 0 or 1; drawing N images with replacement draws the three counts from a multinomial
    distribution, so nothing is resampled one by one.

    Source: Efron 1979, percentile interval.
    """
    assert np.array_equal(first.sample_ids, second.sample_ids)
    difference = second.hits.astype(int) - first.hits.astype(int)
    num_samples = len(difference)
    counts = np.array([(difference == value).sum() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(seed).multinomial(num_samples, counts / num_samples, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / num_samples, [0.025, 0.975])
    return {
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "only_first_right": int(counts[0]),
        "only_second_right": int(counts[2]),
        "resamples": RESAMPLES,
    }
