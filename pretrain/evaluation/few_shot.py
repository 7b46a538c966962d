"""Few-shot classification in closed form: regularised least squares from frozen features to {−1, 1}^K.

The paper's cheap measure of a representation (ViT, 2010.11929, section 4.1, "Metrics"), in the form of its public code:
a few images of each class are drawn, their features whitened by their own mean and standard deviation, a large constant
appended as an all but free bias, and the ridge regression solved by an eigendecomposition.

Legend: N images of the support · D width of the features, the constant included · K classes · B images classified.
Source: google-research/big_vision, evaluators/fewshot_lsr.py (constants, draws and formulas).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema.evaluation import FEW_SHOT_L2, EvaluationSetConfig
from pretrain.distributed.collectives import all_reduce_sum
from pretrain.evaluation.features import Pair, joined

BIAS_CONSTANT = 100.0
STD_FLOOR = 1e-5


@dataclass(frozen=True)
class FewShotRegression:
    """The solution for one support; all float64.

    Attributes:
        mean, std: of the support's features, (D − 1,).
        weights: (D, K).
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int, l2: float) -> FewShotRegression:
        """argmin_W ‖X W − Y‖² + l2 ‖W‖², with X whitened and its last column 100, Y 1 at the label and −1 elsewhere.

        Of XᵀX (D × D) and X Xᵀ (N × N) the smaller one is decomposed: both give the same W.

        Args:
            features: (N, D − 1).
            labels: int64 (N,).
            num_classes: K.
            l2: added to the eigenvalues; the weight of the constant is not spared.
        """
        features = features.double()
        mean, std = features.mean(0), features.std(0, correction=0) + STD_FLOOR
        x = _with_constant((features - mean) / std)
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
        """Scores float64 (B, K) of features (B, D − 1)."""
        return _with_constant((features.double() - self.mean) / self.std) @ self.weights


def draw_support(labels: NDArray[np.int64], num_classes: int, seed: int) -> list[NDArray[np.int64]]:
    """For each class its images in a random order, of which k shots take the first k.

    Args:
        labels: one for each image of the set in canonical order, (N,).
        num_classes: K.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(labels == number)) for number in range(num_classes)]


class FewShot:
    """Mean accuracy over the draws, for each number of shots: ``kind: few_shot``.

    Raises:
        DataError: a class has too few images.
    """

    def __init__(self, config: EvaluationSetConfig, pair: Pair) -> None:
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
                solution = FewShotRegression.fit(values, labels, self._pair.num_classes, config.l2 or FEW_SHOT_L2)
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
