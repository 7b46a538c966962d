"""The predictions of a classifier for a set, and the figures computed from them. Pure functions of arrays.

Accuracy, calibration and confusion; average precision of sets with several labels per image; and how certain the
difference between two models is.

Legend: N images · K classes · M most labels of an image · R resamples · T distinct scores of a class.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.evaluation.classification import average_precision

NUM_BINS = 15
RESAMPLES = 10_000
MAP_RESAMPLES = 1_000
MOST_WORK = 4 * 10**9  # R · N · K; about a minute on one core
BLOCK = 1 << 22  # numbers of one block of resamples
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """Arrays with a row per image, in the set's order.

    Attributes:
        sample_ids: int64 (N,).
        labels: int64 (N, M), padded with -1.
        best: int64 (N, min(5, K)), the most probable classes, the best first.
        confidence: float32 (N,), the probability of the best one.
        scores: float32 (N, K), the logit of every class; (N, 0) for sets with one label per image.
    """

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    best: NDArray[np.int64]
    confidence: NDArray[np.float32]
    scores: NDArray[np.float32]

    @property
    def hits(self) -> NDArray[np.bool_]:
        """(N,), True = the best class is among the image's labels."""
        return (self.best[:, :1] == self.labels).any(1)

    @property
    def hits_in_best(self) -> NDArray[np.bool_]:
        """(N,), True = one of the best five classes is among the image's labels."""
        return (self.best[:, :, None] == self.labels[:, None, :]).any((1, 2))

    def with_labels(self, labels: NDArray[np.int64]) -> Outcomes:
        """The same predictions with other labels; only the images that have one.

        Args:
            labels: of every sample of the set, (N of the set, M), padded with -1.
        """
        other = replace(self, labels=labels[self.sample_ids])
        return other.select(np.any(other.labels >= 0, axis=1))

    def select(self, rows: NDArray[np.bool_]) -> Outcomes:
        """The outcomes of some images."""
        return Outcomes(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


class ClassRow(NamedTuple):
    """Number of images of one class and the model's scores on them; a score is None if the class has no image."""

    index: int
    num_samples: int
    recall: float | None
    precision: float | None


class Bin(NamedTuple):
    """Images whose confidence is in (low, high]: how many, their mean confidence and their accuracy."""

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
    """Recall and precision of the most probable class, for each class."""
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


def positives_of(outcomes: Outcomes, num_classes: int) -> NDArray[np.bool_]:
    """(N, K), True = the image shows the class."""
    shown = np.zeros((len(outcomes.labels), num_classes), dtype=bool)
    rows, places = np.nonzero(outcomes.labels >= 0)
    shown[rows, outcomes.labels[rows, places]] = True
    return shown


def average_precisions(outcomes: Outcomes, num_classes: int) -> Floats:
    """AP of each class, (K,), as inside a run; nan for a class that no image shows."""
    shown = positives_of(outcomes, num_classes)
    return np.array([average_precision(outcomes.scores[:, k], shown[:, k]) for k in range(num_classes)])


def mean_average_precision(outcomes: Outcomes, num_classes: int) -> dict[str, float]:
    """``mAP`` over the classes that some image shows, and ``num_classes`` of them, as inside a run."""
    found = average_precisions(outcomes, num_classes)
    shown = ~np.isnan(found)
    return {"mAP": float(found[shown].mean()) if shown.any() else 0.0, "num_classes": int(shown.sum())}


def paired_map_difference(first: Outcomes, second: Outcomes, num_classes: int, *, seed: int = 0) -> dict[str, Any]:
    """How much better the second model's mAP is on the same images, with a 95 % bootstrap interval.

    Mean average precision is not a mean over images, so images are resampled, the same ones for both models, and both
    figures are computed again. If that would take too long, ``low`` and ``high`` are None and ``why_not`` tells why.

    Source: Efron 1979, percentile interval.
    """
    assert np.array_equal(first.sample_ids, second.sample_ids)
    values = [mean_average_precision(one, num_classes)["mAP"] for one in (first, second)]
    result: dict[str, Any] = {"difference": values[1] - values[0], "low": None, "high": None}
    result["resamples"] = MAP_RESAMPLES
    num_samples = len(first.sample_ids)
    if MAP_RESAMPLES * num_samples * num_classes > MOST_WORK:
        why = f"{MAP_RESAMPLES:,} resamples of {num_samples:,} images × {num_classes:,} classes would take too long"
        return {**result, "resamples": 0, "why_not": f"{why}; evaluate a part of the set for an interval"}
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=MAP_RESAMPLES)
    drawn = [resampled(one.scores, positives_of(one, num_classes), counts) for one in (first, second)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    return {**result, "low": float(low), "high": float(high)}


def resampled(scores: NDArray[np.floating], shown: NDArray[np.bool_], counts: NDArray[np.integer]) -> Floats:
    """mAP of each resample, (R,); a class without an image in a resample is left out of its mean.

    Args:
        scores: (N, K).
        shown: (N, K), True = the image shows the class.
        counts: (R, N), how often a resample has each image.
    """
    num_resamples, num_samples = counts.shape
    total, classes = np.zeros(num_resamples), np.zeros(num_resamples)
    block = max(1, BLOCK // num_samples)
    for k in np.flatnonzero(shown.any(0)):
        order = np.argsort(-scores[:, k], kind="stable")
        last = np.append(np.flatnonzero(np.diff(scores[order, k])), num_samples - 1)  # (T,), of each distinct score
        for start in range(0, num_resamples, block):
            part = slice(start, start + block)
            drawn = counts[part][:, order]
            seen = np.cumsum(drawn, axis=1)[:, last]
            found = np.cumsum(drawn * shown[order, k], axis=1)[:, last]
            gained = np.diff(found, axis=1, prepend=0)
            sums = (gained * found / np.maximum(seen, 1)).sum(1)
            total[part] += sums / np.maximum(found[:, -1], 1)
            classes[part] += found[:, -1] > 0
    return total / np.maximum(classes, 1)
