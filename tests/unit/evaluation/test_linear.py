"""Few-shot regression against the normal equations, and the logistic probe against its own optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.evaluation.linear import FewShotRegression, LogisticRegression, draw_support, held_out


def reference(x: np.ndarray, y: np.ndarray, test: np.ndarray, num_classes: int, l2: float) -> np.ndarray:
    """Scores by the normal equations, as the formula is published; float64."""
    mean, std = x.mean(0), x.std(0) + 1e-5
    whitened = np.hstack([(x - mean) / std, np.full((len(x), 1), 100.0)])
    targets = 2.0 * np.eye(num_classes)[y] - 1.0
    weights = np.linalg.solve(whitened.T @ whitened + l2 * np.eye(whitened.shape[1]), whitened.T @ targets)
    return np.hstack([(test - mean) / std, np.full((len(test), 1), 100.0)]) @ weights


@pytest.mark.parametrize(("num_points", "width"), [(50, 16), (16, 16), (10, 48), (17, 16)])
@pytest.mark.parametrize("l2", [2.0**10, 1.0])
def test_few_shot_scores_equal_the_reference(num_points: int, width: int, l2: float) -> None:
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


RNG = np.random.default_rng(0)
TRAIN, LABELS = RNG.normal(size=(200, 12)), RNG.integers(0, 6, 200)
TEST = RNG.normal(size=(40, 12))


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
