"""Linear classifiers on frozen features: few-shot regression in closed form, and the logistic probe.

Legend: N training images, or images of the support · D width of the features · K classes · B images classified.
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
from pretrain.config.schema.evaluation import FewShotConfig, LogisticConfig
from pretrain.distributed.collectives import all_reduce_sum, broadcast_tensor
from pretrain.errors import DataError
from pretrain.evaluation.classification import TopK
from pretrain.evaluation.features import FeatureSet, OnFeatures, Pair, joined

BIAS_CONSTANT = 100.0
STD_FLOOR = 1e-5
HELD_OUT_PART = 5  # one image in so many, as VTAB-1k's 200 of 1,000


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each of the D features, float64; a constant feature keeps a small deviation."""
    features = features.double()
    return features.mean(0), features.std(0, correction=0) + STD_FLOOR


def standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(features − mean) / std, float64."""
    return (features.double() - mean) / std


# ── few shots ──


@dataclass(frozen=True)
class FewShotRegression:
    """The solution for one support: regularised least squares to {−1, 1}^K in closed form; all float64.

    The paper's cheap measure of a representation (ViT, 2010.11929, section 4.1, "Metrics"), in the form of its public
    code: a few images of each class are drawn, their features whitened by their own mean and standard deviation, a
    large constant appended as an all but free bias, and the ridge regression solved by an eigendecomposition.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py (constants, draws and formulas).

    Attributes:
        mean, std: of the support's features, (D,).
        weights: (D + 1, K), those of the constant last.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int, l2: float) -> FewShotRegression:
        """argmin_W ‖X W − Y‖² + l2 ‖W‖², with X whitened and its last column 100, Y 1 at the label and −1 elsewhere.

        Of XᵀX and X Xᵀ (N × N) the smaller one is decomposed: both give the same W.

        Args:
            features: (N, D).
            labels: int64 (N,).
            num_classes: K.
            l2: added to the eigenvalues; the weight of the constant is not spared.
        """
        mean, std = moments(features)
        x = _with_constant(standardised(features, mean, std))
        y = 2.0 * torch.nn.functional.one_hot(labels, num_classes).double() - 1.0
        num_points, width = x.shape
        if num_points >= width:
            values, vectors = torch.linalg.eigh(x.T @ x)
            weights = vectors @ ((vectors.T @ (x.T @ y)) / (values + l2)[:, None])
        else:
            values, vectors = torch.linalg.eigh(x @ x.T)
            weights = x.T @ (vectors @ ((vectors.T @ y) / (values + l2)[:, None]))
        return cls(mean, std, weights)

    def __call__(self, features: Tensor) -> Tensor:
        """Scores float64 (B, K) of features (B, D)."""
        return _with_constant(standardised(features, self.mean, self.std)) @ self.weights


def draw_support(labels: NDArray[np.int64], num_classes: int, seed: int) -> list[NDArray[np.int64]]:
    """For each class its images in a random order, of which k shots take the first k.

    Args:
        labels: one for each image of the set in canonical order, (N,).
        num_classes: K.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == number)) for number in range(num_classes)]


class FewShot(OnFeatures):
    """Mean accuracy over the draws, for each number of shots: ``kind: few_shot``.

    Raises:
        DataError: a class has too few images.
    """

    def __init__(self, config: FewShotConfig, pair: Pair) -> None:
        self._config, self._pair = config, pair
        most = max(config.shots)
        pair.require_images(most)
        orders = [draw_support(pair.train_labels, pair.num_classes, seed) for seed in range(config.num_seeds)]
        self._supports = [[order[:most] for order in of_classes] for of_classes in orders]
        wanted = np.unique(np.concatenate([ids for of_classes in self._supports for ids in of_classes]))
        self._train = pair.train.only(wanted)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``5_shot``, the mean accuracy over the draws, and ``5_shot_std`` for each number of shots. Collective."""
        config, device = self._config, self._pair.device
        train = self._train.whole()
        row_of = {int(sample_id): row for row, sample_id in enumerate(train.sample_ids)}
        test = joined(list(self._pair.test.own()))
        correct = torch.zeros(len(config.shots), config.num_seeds, dtype=torch.int64, device=device)
        for seed, support in enumerate(self._supports):
            for index, shots in enumerate(config.shots):
                chosen = np.concatenate([ids[:shots] for ids in support]).tolist()
                rows = torch.tensor([row_of[sample_id] for sample_id in chosen if sample_id in row_of])
                values, labels = train.values[rows].to(device), train.labels[rows, 0].to(device)
                solution = FewShotRegression.fit(values, labels, self._pair.num_classes, config.ridge)
                correct[index, seed] = (solution(test.values).argmax(1) == test.labels[:, 0]).sum()
        counts = torch.cat([correct.flatten(), torch.tensor([len(test.values)], device=device)])
        *hits, num_samples = all_reduce_sum(counts).tolist()
        return self._summary(np.array(hits).reshape(correct.shape) / max(num_samples, 1), num_samples)

    def _summary(self, accuracies: NDArray[np.float64], num_samples: int) -> dict[str, float]:
        result: dict[str, float] = {}
        for shots, own in zip(self._config.shots, accuracies, strict=True):
            result[f"{shots}_shot"] = float(own.mean())
            result[f"{shots}_shot_std"] = float(own.std(ddof=1)) if len(own) > 1 else 0.0
        return {**result, "num_samples": num_samples}


def _with_constant(features: Tensor) -> Tensor:
    return torch.nn.functional.pad(features, (0, 1), value=BIAS_CONSTANT)


# ── logistic probe ──


@dataclass(frozen=True)
class LogisticRegression:
    """A solution of multinomial logistic regression, by scikit-learn's L-BFGS; all float64.

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

        mean, std = moments(features)
        solver = Solver(C=1.0 / l2, max_iter=max_iterations)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solver.fit(standardised(features, mean, std).numpy(), labels.numpy())
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
        return standardised(features, self.mean, self.std) @ self.weights + self.bias


class LogisticProbe(OnFeatures):
    """``kind: logistic``. Rank 0 solves, all ranks score.

    Raises:
        DataError: all training images are of one class.
    """

    def __init__(self, config: LogisticConfig, pair: Pair) -> None:
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
            settings = {"l2": self._config.penalty, "max_iterations": self._config.max_iterations}
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
