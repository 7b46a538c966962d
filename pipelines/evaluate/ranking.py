"""Average precision of several labels per image, and how sure a difference of its mean is.

Legend: N images · K classes · R resamples · T distinct scores of a class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.outcomes import Outcomes
from pretrain.evaluation.average_precision import average_precision

RESAMPLES = 1_000
MOST_WORK = 4 * 10**9  # R · N · K; about a minute on one core
BLOCK = 1 << 22  # numbers of one block of resamples
Floats = NDArray[np.float64]


def positives_of(outcomes: Outcomes, num_classes: int) -> NDArray[np.bool_]:
    """(N, K), True = the image shows the class."""
    shown = np.zeros((len(outcomes.labels), num_classes), dtype=bool)
    rows, places = np.nonzero(outcomes.labels >= 0)
    shown[rows, outcomes.labels[rows, places]] = True
    return shown


def average_precisions(outcomes: Outcomes, num_classes: int) -> Floats:
    """AP of each class, (K,); nan for a class that no image shows. As inside a run."""
    shown = positives_of(outcomes, num_classes)
    return np.array([average_precision(outcomes.scores[:, k], shown[:, k]) for k in range(num_classes)])


def mean_average_precision(outcomes: Outcomes, num_classes: int) -> dict[str, float]:
    """``mAP`` over the classes that some image shows, and ``num_classes`` of them, as inside a run."""
    found = average_precisions(outcomes, num_classes)
    shown = ~np.isnan(found)
    return {"mAP": float(found[shown].mean()) if shown.any() else 0.0, "num_classes": int(shown.sum())}


def paired_difference(first: Outcomes, second: Outcomes, num_classes: int, *, seed: int = 0) -> dict[str, Any]:
    """How much better the second model's mAP is on the same images, with a 95 % bootstrap interval.

    Mean average precision is no mean over images, so the images are drawn anew, the same for both models, and both
    figures computed again. Where that would take too long, ``low`` and ``high`` are None and ``why_not`` says so.

    Source: Efron 1979, percentile interval.
    """
    assert np.array_equal(first.sample_ids, second.sample_ids)
    values = [mean_average_precision(one, num_classes)["mAP"] for one in (first, second)]
    result: dict[str, Any] = {"difference": values[1] - values[0], "low": None, "high": None, "resamples": RESAMPLES}
    num_samples = len(first.sample_ids)
    if RESAMPLES * num_samples * num_classes > MOST_WORK:
        why = f"{RESAMPLES:,} resamples of {num_samples:,} images × {num_classes:,} classes would take too long"
        return {**result, "resamples": 0, "why_not": f"{why}; evaluate a part of the set for an interval"}
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=RESAMPLES)
    drawn = [resampled(one.scores, positives_of(one, num_classes), counts) for one in (first, second)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    return {**result, "low": float(low), "high": float(high)}


def resampled(scores: NDArray[np.floating], shown: NDArray[np.bool_], counts: NDArray[np.integer]) -> Floats:
    """mAP of each resample, (R,); a class that a resample does not show is left out of its mean.

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
