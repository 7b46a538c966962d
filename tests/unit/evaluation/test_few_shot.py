"""The closed form equals a ridge regression solved directly, and the draws those of the public code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.errors import DataError
from pretrain.evaluation.features import single_labels
from pretrain.evaluation.few_shot import FewShotRegression, draw_support


def reference(x: np.ndarray, y: np.ndarray, test: np.ndarray, num_classes: int, l2: float) -> np.ndarray:
    """Scores by the normal equations, as the formula is published; float64."""
    mean, std = x.mean(0), x.std(0) + 1e-5
    whitened = np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)])
    targets = 2.0 * np.eye(num_classes)[y] - 1.0
    weights = np.linalg.solve(whitened.T @ whitened + l2 * np.eye(whitened.shape[1]), whitened.T @ targets)
    return np.hstack([(test - mean) / std, np.full((len(test), 1), 100.0)]) @ weights


@pytest.mark.parametrize(("num_points", "width"), [(50, 16), (16, 16), (10, 48), (17, 16)])
@pytest.mark.parametrize("l2", [2.0**10, 1.0])
def test_scores_equal_the_reference(num_points: int, width: int, l2: float) -> None:
    rng = np.random.default_rng(0)
    x, test = rng.normal(3.0, 2.0, (num_points, width)), rng.normal(3.0, 2.0, (40, width))
    x[:, 0] = 1.25  # a feature that does not vary
    y = np.arange(num_points) % 5
    solution = FewShotRegression.fit(torch.from_numpy(x).float(), torch.from_numpy(y), 5, l2)
    scores = solution(torch.from_numpy(test).float()).numpy()
    expected = reference(x.astype(np.float32).astype(float), y, test.astype(np.float32).astype(float), 5, l2)
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)


def test_separable_classes_are_told_apart() -> None:
    centres = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(5)
    solution = FewShotRegression.fit(centres[labels] + 0.01 * torch.randn(20, 32), labels, 4, 2.0**10)
    assert solution(centres).argmax(1).tolist() == [0, 1, 2, 3]


def test_draws_are_those_of_the_public_code() -> None:
    labels = np.array([0, 1, 0, 2, 1, 0, 2, 0, 1, 2])
    for seed in range(3):
        rng = np.random.default_rng(seed)  # one generator goes through the classes in order
        expected = [rng.permutation(np.where(labels == number)[0]) for number in range(3)]
        for ours, theirs in zip(draw_support(labels, 3, seed), expected, strict=True):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("labels", [[[1, 2], [3, -1]], [[1], [-1]]])
def test_images_need_one_label(labels: list[list[int]]) -> None:
    with pytest.raises(DataError, match="do not have exactly one label"):
        single_labels(np.array(labels), "data/set")
    assert single_labels(np.array([[-1, 4], [2, -1]]), "data/set").tolist() == [4, 2]
