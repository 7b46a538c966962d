"""Weighted k-nearest-neighbour classification on frozen features.

The neighbours of an image are the k training images of the highest cosine; each votes for its class with weight
exp(cosine / T). The training features are never held all at once: they pass by in chunks, and each rank keeps the k
best so far for its own test images.

Legend: B test images of this rank · n training images of a chunk · D width · k neighbours · K classes.
Source: Caron et al., DINO (2104.14294), section 4.1 (k 20, T 0.07), after Wu et al. (1805.01978), section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.config.schema.evaluation import KnnConfig
from pretrain.evaluation.classification import TopK
from pretrain.evaluation.features import Features, OnFeatures, Pair, joined

CHUNK = 4096


def nearest(queries: Tensor, chunks: Iterable[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Cosines and labels of the k nearest of all chunks, both (B, k), the nearest first.

    Args:
        queries: (B, D), of any length.
        chunks: (features (n, D), labels int64 (n,)); all ranks the same number of them.
        k: neighbours.
    """
    queries = F.normalize(queries, dim=1)
    best = queries.new_full((len(queries), 0), 0.0)
    labels = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for features, own in chunks:
        best = torch.cat([best, queries @ F.normalize(features, dim=1).T], dim=1)
        labels = torch.cat([labels, own.expand(len(queries), -1)], dim=1)
        best, places = best.topk(min(k, best.shape[1]), dim=1)
        labels = labels.gather(1, places)
    return best, labels


def votes(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Sum of exp(cosine / T) over the neighbours of each class, float64 (B, K)."""
    total = torch.zeros(len(cosines), num_classes, dtype=torch.float64, device=cosines.device)
    return total.scatter_add_(1, labels, (cosines.double() / temperature).exp())


class NearestNeighbours(OnFeatures):
    """``kind: knn``."""

    def __init__(self, config: KnnConfig, pair: Pair) -> None:
        self._config, self._pair = config, pair

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``knn_top1``, ``knn_top5`` and ``num_samples``. Collective: yes."""
        test = joined(list(self._pair.test.own()))
        cosines, labels = nearest(test.values, self._chunks(), self._config.k)
        meter = TopK(self._pair.device)
        scores = votes(cosines, labels, self._pair.num_classes, self._config.temperature)
        meter.update(scores, test.labels, test.valid)
        return meter.result("knn_")

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        waiting: list[Features] = []
        for part in self._pair.train.own():
            waiting.append(part.gathered())
            if sum(len(one.values) for one in waiting) >= CHUNK:
                yield _chunk(waiting)
                waiting = []
        if waiting:
            yield _chunk(waiting)


def _chunk(parts: list[Features]) -> tuple[Tensor, Tensor]:
    whole = joined(parts)
    return whole.values, whole.labels[:, 0]
