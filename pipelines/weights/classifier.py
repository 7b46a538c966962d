"""Trained weights as an object that classifies images.

>>> classifier = load_classifier("runs/demo_digits")            # doctest: +SKIP
>>> classifier.predict(["digit.png"], top=3)[0][0].name         # doctest: +SKIP
'7'

Legend: B images · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipelines.weights.load import experiment_of, weights_path
from pipelines.weights.network import Network, load_network

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Prediction:
    """One class that an image may be of; ``score`` is its probability."""

    index: int
    id: str
    name: str
    score: float


@dataclass(frozen=True)
class Classifier(Network):
    """A network that gives classes.

    Attributes:
        activation: logits → probabilities: softmax over the classes, or sigmoid of each.
    """

    activation: Activation

    def predict(self, images: Sequence[bytes | str | Path], *, top: int = 5) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each image, the best first.

        Args:
            images: encoded images, or paths of such files; one micro-batch.
            top: how many; at most K.

        Raises:
            BadSample: one of them is no readable image. OSError: no such file.
        """
        return self.best(self.probabilities(self.pixels(images)), top)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, K) on the CPU, of pixels uint8 (B, 3, H, W)."""
        return self.activated(self.outputs(images)).cpu()

    def activated(self, logits: Tensor) -> Tensor:
        """Logits → probabilities, of the same shape."""
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()

    def best(self, probabilities: Tensor, top: int) -> list[list[Prediction]]:
        """The ``top`` largest of each row of (B, K) with their names."""
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
        activation: None: sigmoid where the run's objective was that, else softmax.
    """
    network = load_network(source, "classification", **options)
    chosen = activation or _activation(Path(source), options.get("weights", "raw"))
    return Classifier(**vars(network), activation=chosen)


def _activation(source: Path, weights: Literal["raw", "ema"]) -> Activation:
    experiment = experiment_of(weights_path(source, weights, lambda line: None))
    return "softmax" if experiment is None else experiment.objective.needs.activation
