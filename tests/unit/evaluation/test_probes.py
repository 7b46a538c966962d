"""Nearest neighbours against scikit-learn's, and the logistic probe against its own optimality condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from pretrain.evaluation.knn import nearest, votes
from pretrain.evaluation.logistic import LogisticRegression, held_out

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


def gradient(found: LogisticRegression, x: torch.Tensor, y: torch.Tensor, l2: float) -> torch.Tensor:
    """Of Σ cross-entropy + l2 / 2 ‖W‖² at a solution."""
    weights = found.weights.clone().requires_grad_()
    logits = (x.double() - found.mean) / found.std @ weights + found.bias
    loss = F.cross_entropy(logits, y, reduction="sum") + l2 / 2 * weights.square().sum()
    return torch.autograd.grad(loss, weights)[0]


@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_the_logistic_probe_is_at_the_minimum(l2: float) -> None:
    x, y = torch.from_numpy(TRAIN), torch.from_numpy(LABELS)
    found, converged = LogisticRegression.fit(x, y, 6, l2=l2, max_iterations=1000)
    assert converged and gradient(found, x, y, l2).abs().max() < 0.02
    assert torch.allclose(found.mean, x.mean(0)) and found(x).shape == (200, 6)


def test_classes_without_images_are_never_predicted() -> None:
    x, y = torch.from_numpy(TRAIN), torch.from_numpy(LABELS % 2 * 3 + 1)  # classes 1 and 4 of 6
    found, _ = LogisticRegression.fit(x, y, 6, l2=1.0, max_iterations=1000)
    logits = found(torch.from_numpy(TEST))
    assert set(logits.argmax(1).tolist()) == {1, 4} and (logits[:, [0, 2, 3, 5]] == float("-inf")).all()
    accuracy = (found(x).argmax(1) == y).double().mean()
    assert accuracy > 0.5


def test_a_solver_that_is_cut_short_says_so() -> None:
    _, converged = LogisticRegression.fit(
        torch.from_numpy(TRAIN), torch.from_numpy(LABELS), 6, l2=1e-6, max_iterations=1
    )
    assert not converged


def test_a_fifth_is_held_out_and_every_class_keeps_an_image() -> None:
    labels = np.array([0, 1, 1, 2] + [3] * 46)
    chosen = held_out(labels)
    assert chosen.sum() == 10 and set(labels[~chosen]) == {0, 1, 2, 3} and not chosen[[0, 3]].any()
    assert (held_out(labels) == chosen).all() and not held_out(np.arange(5)).any()
