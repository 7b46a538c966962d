"""Votes of the nearest neighbours against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from pretrain.evaluation.knn import nearest, votes

RNG = np.random.default_rng(0)
TRAIN, LABELS = RNG.normal(size=(200, 12)), RNG.integers(0, 6, 200)
TEST = RNG.normal(size=(40, 12))


@pytest.mark.parametrize(("k", "chunk"), [(1, 200), (20, 200), (20, 7), (20, 64), (200, 30)])
def test_votes_equal_scikit_learn(k: int, chunk: int) -> None:
    weights: Any = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    peer = KNeighborsClassifier(k, metric="cosine", weights=weights)
    shares = peer.fit(TRAIN, LABELS).predict_proba(TEST)
    train, labels = torch.from_numpy(TRAIN), torch.from_numpy(LABELS)
    chunks = [(train[start : start + chunk], labels[start : start + chunk]) for start in range(0, 200, chunk)]
    cosines, found = nearest(torch.from_numpy(TEST), chunks, k)
    assert cosines.shape == found.shape == (40, k)
    scores = votes(cosines, found, 6, 0.07)
    np.testing.assert_allclose(scores / scores.sum(1, keepdim=True), shares, atol=1e-9)
