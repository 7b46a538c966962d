"""Trained weights that classify images.

>>> classifier = load_classifier("runs/demo_digits")            # doctest: +SKIP
>>> classifier.predict(["digit.png"], top=3)[0][0].name         # doctest: +SKIP
'7'

Legend: B images · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from pipelines.weights.load import experiment_of, weights_path
from pipelines.weights.network import Network, load_network
from pretrain.config.target import Target
from pretrain.models.metadata import Task

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Prediction:
    """One class with its probability ``score``."""

    index: int
    id: str
    name: str
    score: float


@dataclass(frozen=True)
class Classifier(Network):
    """A network whose outputs are logits of classes.

    Attributes:
        activation: logits → probabilities: softmax over the classes, or sigmoid of each.
    """

    task: ClassVar[Task | None] = "classification"
    target: ClassVar[Target | None] = "labels"

    activation: Activation = "softmax"

    def predict(self, images: Sequence[bytes | str | Path], *, top: int = 5) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each image, the best first.

        Args:
            images: encoded images, or paths of such files; one micro-batch.
            top: how many; at most K.

        Raises:
            BadSample: one of them is not a readable image. OSError: no such file.
        """
        return self.best(self.probabilities(self.pixels(images)), top)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, K) on the CPU, for pixels uint8 (B, 3, H, W)."""
        return self.activated(self.outputs(images)).cpu()

    def activated(self, logits: Tensor) -> Tensor:
        """Logits → probabilities, of the same shape."""
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()

    def best(self, probabilities: Tensor, top: int) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each row of (B, K)."""
        values, indices = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        return [
            [self._prediction(index, score) for index, score in zip(*row, strict=True)]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def _prediction(self, index: int, score: float) -> Prediction:
        names, ids = self.metadata.class_names, self.metadata.class_ids
        return Prediction(index, ids[index] if ids else str(index), names[index] if names else str(index), score)


def load_classifier(source: str | Path, *, activation: Activation | None = None, **options: Any) -> Classifier:
    """Reads weights of a classification; other arguments and errors as ``load_network``.

    Args:
        activation: None: the one that fits the run's objective; softmax for weights from elsewhere.
    """
    classifier = load_network(source, Classifier, **options)
    chosen = activation or _activation(Path(source), options.get("weights", "raw"))
    return replace(classifier, activation=chosen)


def _activation(source: Path, weights: Literal["raw", "ema"]) -> Activation:
    experiment = experiment_of(weights_path(source, weights, lambda line: None))
    return "softmax" if experiment is None else experiment.objective.needs.activation
