"""Mean average precision of a multi-label set, exact on any number of ranks.

A class's average precision needs its scores of all images in one place. So the classes are dealt to the ranks, each
batch's scores are gathered, and each rank keeps the columns of its classes.

Legend: B images · N images of the set · K classes · M most labels of an image · R ranks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pretrain.distributed.collectives import all_gather_rows, all_reduce_sum, is_distributed


def average_precision(scores: NDArray[np.floating], positives: NDArray[np.bool_]) -> float:
    """Σₙ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores as thresholds, highest first; nan without a positive image.

    Images of equal score come at one threshold, so that their order does not matter.

    Args:
        scores: (N,).
        positives: (N,), True = the image shows the class.

    Source: scikit-learn, ``average_precision_score``, whose formula it is: no interpolation.
    """
    num_positives = int(positives.sum())
    if not num_positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(positives[order])[thresholds]
    precision = found / (thresholds + 1)
    gained = np.diff(found, prepend=0)
    return float((gained * precision).sum() / num_positives)


class MeanAveragePrecision:
    """Gathers scores batch by batch; the mean is over the classes that some image shows.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        self._num_classes = num_classes
        self._first, self._stop = num_classes * rank // world, num_classes * (rank + 1) // world
        self._scores: list[NDArray[np.float32]] = []
        self._positives: list[NDArray[np.bool_]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Takes one micro-batch of every rank. Collective: equal shapes on all ranks.

        Args:
            logits: (B, K).
            labels: int64 (B, M), padded with −1.
            valid: bool (B,), True = a real image.
        """
        every_valid = all_gather_rows(valid.to(torch.uint8)).bool().cpu()
        scores = all_gather_rows(logits.float())[:, self._first : self._stop].cpu()[every_valid]
        every_label = all_gather_rows(labels).cpu()[every_valid]
        own = torch.arange(self._first, self._stop)
        positives = torch.zeros(len(every_label), len(own), dtype=torch.bool)
        for column in every_label.T:  # one comparison per label of an image, not one tensor of N × M × K
            positives |= column[:, None] == own
        self._scores.append(scores.numpy())
        self._positives.append(positives.numpy())

    def result(self) -> dict[str, float]:
        """``mAP`` in [0, 1] and ``num_classes``, those with an image: the same bits on any number of ranks.

        Collective: yes.
        """
        found = torch.zeros(self._num_classes, dtype=torch.float64)
        if self._scores:
            scores, positives = np.concatenate(self._scores), np.concatenate(self._positives)
            for column in range(scores.shape[1]):
                found[self._first + column] = average_precision(scores[:, column], positives[:, column])
        found = self._over_ranks(found)
        shown = ~torch.isnan(found)
        num_classes = int(shown.sum())
        return {"mAP": float(found[shown].mean()) if num_classes else 0.0, "num_classes": num_classes}

    @staticmethod
    def _over_ranks(found: Tensor) -> Tensor:
        """Each class's figure from the rank that has it; the others add zeros."""
        device = "cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu"
        return all_reduce_sum(found.to(device)).cpu()
