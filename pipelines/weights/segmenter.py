"""Trained weights that classify every pixel.

>>> segmenter = load_segmenter("runs/scenes")         # doctest: +SKIP
>>> segmenter.predict("street.jpg").shape             # doctest: +SKIP
(1080, 1920)

Legend: B images · H, W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.weights.network import Network, encoded, load_network, stack
from pretrain.config.target import Target
from pretrain.data.images.decode import open_image
from pretrain.models.metadata import Task

MOST_LOGITS = 1 << 28  # a GiB of fp32


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
        decoded = open_image(encoded(image))
        pixels = self.transform.of_pixels(decoded.decode())
        return class_of_pixels(self.outputs(stack([pixels])), decoded.height, decoded.width)


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
