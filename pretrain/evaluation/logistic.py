"""A logistic probe: multinomial logistic regression on frozen features, by scikit-learn's L-BFGS.

Features are standardised by the training set's mean and standard deviation. Rank 0 solves, all ranks score.

Legend: N training images · D width · K classes · B images classified.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config.schema.evaluation import LOGISTIC_L2, EvaluationSetConfig
from pretrain.data.labels import read_labels
from pretrain.distributed.collectives import broadcast_tensor
from pretrain.evaluation.context import Context
from pretrain.evaluation.features import all_features, own_features
from pretrain.evaluation.few_shot import STD_FLOOR, single_labels
from pretrain.evaluation.topk import TopK


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
            The solution, and whether the solver says that it has converged.
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
    """``kind: logistic``."""

    def __init__(self, config: EvaluationSetConfig, context: Context) -> None:
        assert config.train_shards is not None
        self._config, self._context = config, context
        self._train = context.stream(config, config.train_shards)
        self._test = context.stream(config, config.shards)
        single_labels(read_labels(self._train.table), config.train_shards)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``logistic_top1``, ``logistic_top5`` and ``num_samples``. Collective: yes."""
        context = self._context
        solution = self._solve()
        meter = TopK(context.device)
        for part in own_features(context, self._test):
            meter.update(solution(part.values), part.labels, part.valid)
        result = meter.result()
        return {f"logistic_{name}" if name.startswith("top") else name: value for name, value in result.items()}

    def _solve(self) -> LogisticRegression:
        train, num_classes = all_features(self._context, self._train), self._train.table.num_classes
        width, device = train.values.shape[1], self._context.device
        whole = torch.zeros(width + 3, max(width, num_classes), dtype=torch.float64)
        if self._context.rank == 0:
            settings = {"l2": self._config.l2 or LOGISTIC_L2, "max_iterations": self._config.max_iterations}
            found, converged = LogisticRegression.fit(train.values, train.labels[:, 0], num_classes, **settings)
            whole[0, :width], whole[1, :width] = found.mean, found.std
            whole[2, :num_classes], whole[3:, :num_classes] = found.bias, found.weights
            if not converged:
                self._context.say(
                    f"note: the logistic probe of {self._config.shards} stopped after {self._config.max_iterations} "
                    "iterations; raise max_iterations or l2"
                )
        whole = broadcast_tensor(whole.to(device))
        return LogisticRegression(whole[0, :width], whole[1, :width], whole[3:, :num_classes], whole[2, :num_classes])
