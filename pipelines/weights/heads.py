"""Trained weights with the meaning of their head's outputs: classes, numbers, or a class for every pixel.

>>> classifier = load_classifier("runs/demo_digits")            # doctest: +SKIP
>>> classifier.predict(["digit.png"], top=3)[0][0].name         # doctest: +SKIP
'7'
>>> load_regressor("runs/ages").predict(["face.jpg"])[0]        # doctest: +SKIP
{'age': 31.4}
>>> load_segmenter("runs/scenes").predict("street.jpg").shape   # doctest: +SKIP
(1080, 1920)

Legend: B images · H, W pixels · K classes · D numbers per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.weights.network import Network, encoded, load_network, stack
from pretrain.config.schema.data import Target
from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import open_image
from pretrain.models.metadata import Task, WeightsMetadata

Activation = Literal["softmax", "sigmoid"]
MOST_LOGITS = 1 << 28  # a GiB of fp32


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
        activation: None: the one that the weights record.
    """
    classifier = load_network(source, Classifier, **options)
    chosen = activation or activation_of(classifier.metadata, options.get("say", lambda line: None))
    return replace(classifier, activation=chosen)


def activation_of(metadata: WeightsMetadata, say: Callable[[str], None]) -> Activation:
    """The activation that the weights record; a guess, with a note, for weights from elsewhere that record none."""
    if metadata.activation is not None:
        assert metadata.activation != "none", "load_network refuses a regression"
        return metadata.activation
    chosen: Activation = "softmax" if metadata.num_classes > 1 else "sigmoid"  # a softmax over one class is always 1
    say(f"the weights do not record how logits become probabilities: {chosen} is assumed; --activation states it")
    return chosen


class Regressor(Network):
    """A network whose outputs are numbers, in the units of its training data."""

    task: ClassVar[Task | None] = "regression"
    target: ClassVar[Target | None] = "vector"

    def values(self, images: Tensor) -> Tensor:
        """fp32 (B, D) on the CPU, for pixels uint8 (B, 3, H, W)."""
        scale = self.metadata.scale
        assert scale is not None
        return scale.restored(self.outputs(images)).cpu()

    def predict(self, images: Sequence[bytes | str | Path]) -> list[dict[str, float]]:
        """The numbers of each image, by name.

        Args:
            images: encoded images, or paths of such files; one micro-batch.

        Raises:
            BadSample: one of them is not a readable image. OSError: no such file.
        """
        return [dict(zip(self.keys, row, strict=True)) for row in self.values(self.pixels(images)).tolist()]


def load_regressor(source: str | Path, **options: Any) -> Regressor:
    """Reads weights of a regression; arguments and errors as ``load_network``."""
    return load_network(source, Regressor, **options)


class Segmenter(Network):
    """A network whose outputs are logits of classes for every pixel."""

    task: ClassVar[Task | None] = "segmentation"
    target: ClassVar[Target | None] = "mask"

    def masks(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W) on the CPU: the most probable class of each pixel, for pixels uint8 (B, 3, H, W)."""
        return self.outputs(images).argmax(1).to(torch.uint8).cpu()

    def predict(self, image: bytes | str | Path) -> NDArray[np.uint8]:
        """The most probable class of every pixel of an image, uint8 of its own height and width.

        The logits are interpolated to that size, so that edges are as sharp as the image's pixels.

        Raises:
            BadSample: not a readable image. OSError: no such file.
        """
        return self.of_pixels(open_image(encoded(image)).decode())

    def of_pixels(self, pixels: Pixels) -> NDArray[np.uint8]:
        """Like ``predict``, for a decoded image, uint8 (height, width, 3)."""
        outputs = self.outputs(stack([self.transform.of_pixels(pixels)]))
        return class_of_pixels(outputs, pixels.shape[0], pixels.shape[1])


def class_of_pixels(logits: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """The most probable class of each pixel of an image, from logits at the model's resolution.

    Logits of many classes at a large image's size take gigabytes, so rows are computed in bands above ``MOST_LOGITS``.

    Args:
        logits: (1, K, h, w).
        height: of the image.
        width: of the image.

    Returns:
        uint8 (height, width).
    """
    num_classes, rows = logits.shape[1], logits.shape[2]
    if num_classes * height * width <= MOST_LOGITS:
        resized = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return resized[0].argmax(0).to(torch.uint8).cpu().numpy()
    places = ((torch.arange(height, dtype=torch.float64) + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
    above = places.long()
    below, share = (above + 1).clamp(max=rows - 1), (places - above).to(logits)[None, None, :, None]
    found = np.empty((height, width), dtype=np.uint8)
    band = max(1, MOST_LOGITS // (num_classes * width))
    for start in range(0, height, band):
        chosen = slice(start, min(height, start + band))
        part = logits[:, :, above[chosen]].lerp(logits[:, :, below[chosen]], share[:, :, chosen])
        wide = F.interpolate(part, (part.shape[2], width), mode="bilinear", align_corners=False)
        found[chosen] = wide[0].argmax(0).to(torch.uint8).cpu().numpy()
    return found


def load_segmenter(source: str | Path, **options: Any) -> Segmenter:
    """Reads weights with a dense head; arguments and errors as ``load_network``."""
    return load_network(source, Segmenter, **options)
