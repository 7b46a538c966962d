"""A logistic probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS.

Features are standardised by the training set's mean and standard deviation. Rank 0 solves, all ranks score.

Legend: N training images · D width · K classes · B images classified.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain import seeds
from pretrain.config.schema.evaluation import LOGISTIC_L2, EvaluationSetConfig
from pretrain.distributed.collectives import all_reduce_sum, broadcast_tensor
from pretrain.errors import DataError
from pretrain.evaluation.classification import TopK
from pretrain.evaluation.features import FeatureSet, Pair
from pretrain.evaluation.few_shot import STD_FLOOR

HELD_OUT_PART = 5  # one image in so many, as VTAB-1k's 200 of 1,000


@dataclass(frozen=True)
class LogisticRegression:
    """A solution; all float64.

    Attributes:
        mean, std: of the training features, (D,).
        weights: (D, K).
        bias: (K,); −inf for a class without training images.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor
    bias: Tensor

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, num_classes: int, *, l2: float, max_iterations: int
    ) -> tuple[LogisticRegression, bool]:
        """Minimises Σ cross-entropy + l2 / 2 ‖W‖² (the bias is free) on the host.

        Args:
            features: (N, D).
            labels: int64 (N,), at least two different ones.
            num_classes: K.
            l2: see above.
            max_iterations: of L-BFGS.

        Returns:
            The solution, and whether the solver reports that it has converged.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as Solver

        features = features.double()
        mean, std = features.mean(0), features.std(0, correction=0) + STD_FLOOR
        solver = Solver(C=1.0 / l2, max_iter=max_iterations)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solver.fit(((features - mean) / std).numpy(), labels.numpy())
        weights = torch.zeros(features.shape[1], num_classes, dtype=torch.float64)
        bias = torch.full((num_classes,), float("-inf"), dtype=torch.float64)
        own = torch.from_numpy(solver.classes_)
        if len(own) == 2:  # one row for two classes: the second against the first
            bias[own[0]] = 0.0
            own = own[1:]
        weights[:, own] = torch.from_numpy(solver.coef_).T
        bias[own] = torch.from_numpy(solver.intercept_)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        return cls(mean, std, weights, bias), converged

    def __call__(self, features: Tensor) -> Tensor:
        """Logits float64 (B, K) of features (B, D)."""
        return (features.double() - self.mean) / self.std @ self.weights + self.bias


class LogisticProbe:
    """``kind: logistic``.

    Raises:
        DataError: all training images are of one class.
    """

    def __init__(self, config: EvaluationSetConfig, pair: Pair) -> None:
        self._config, self._pair = config, pair
        if len(np.unique(pair.train_labels)) < 2:
            raise DataError(f"{pair.train.shards}: all images are of one class; there is nothing to tell apart")

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``logistic_top1``, ``logistic_top5`` and ``num_samples``. Collective: yes."""
        solution = self._solve()
        meter = TopK(self._pair.device)
        for part in self._pair.test.own():
            meter.update(solution(part.values), part.labels, part.valid)
        return meter.result("logistic_")

    def _solve(self) -> LogisticRegression:
        train, num_classes = self._pair.train.whole(), self._pair.num_classes
        width = train.values.shape[1]
        whole = torch.zeros(width + 3, max(width, num_classes), dtype=torch.float64)
        if self._pair.rank == 0:
            settings = {"l2": self._config.l2 or LOGISTIC_L2, "max_iterations": self._config.max_iterations}
            found, converged = LogisticRegression.fit(train.values, train.labels[:, 0], num_classes, **settings)
            whole[0, :width], whole[1, :width] = found.mean, found.std
            whole[2, :num_classes], whole[3:, :num_classes] = found.bias, found.weights
            if not converged:
                self._pair.say(
                    f"note: the logistic probe of {self._config.shards} stopped after {self._config.max_iterations} "
                    "iterations; raise max_iterations or l2"
                )
        whole = broadcast_tensor(whole.to(self._pair.device))
        return LogisticRegression(whole[0, :width], whole[1, :width], whole[3:, :num_classes], whole[2, :num_classes])


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A fifth of the training images, True = choose a setting on it, (N,): those of the smallest seeded hash.

    At least one image is held out, and of every class that has two or more at least one stays.

    Args:
        labels: of the training images in canonical order, (N,).
    """
    order = np.argsort(seeds.hash64("logistic", "dev", np.arange(len(labels))), kind="stable")
    left = np.bincount(labels)
    chosen = np.zeros(len(labels), dtype=bool)
    wanted = -(-len(labels) // HELD_OUT_PART)
    for place in order:
        if wanted and left[labels[place]] > 1:
            chosen[place] = True
            left[labels[place]] -= 1
            wanted -= 1
    return chosen


def accuracies_of(
    grid: Sequence[float], pair: Pair, dev: FeatureSet | None, *, max_iterations: int
) -> dict[float, float]:
    """Accuracy for each weight of the penalty, on images that it was not fitted to. Collective: yes.

    The grid is dealt to the ranks.

    Args:
        grid: values of ``l2``.
        pair: its test images are not looked at.
        dev: images to choose by; None: ``held_out`` of the training images.
        max_iterations: of L-BFGS.
    """
    train = pair.train.whole()
    values, labels = train.values, train.labels[:, 0]
    if dev is None:
        aside = torch.from_numpy(held_out(labels.numpy()))
        fitted, judged = (values[~aside], labels[~aside]), (values[aside], labels[aside])
    else:
        others = dev.whole()
        fitted, judged = (values, labels), (others.values, others.labels[:, 0])
    found = torch.zeros(len(grid), dtype=torch.float64)
    for place in range(pair.rank, len(grid), pair.world):
        solution, _ = LogisticRegression.fit(*fitted, pair.num_classes, l2=grid[place], max_iterations=max_iterations)
        found[place] = (solution(judged[0]).argmax(1) == judged[1]).double().mean()
    return dict(zip(grid, all_reduce_sum(found).tolist(), strict=True))
