"""Trained weights as an object that gives the class of every pixel.

>>> segmenter = load_segmenter("runs/scenes")         # doctest: +SKIP
>>> segmenter.predict("street.jpg").shape             # doctest: +SKIP
(1080, 1920)

Legend: B images · H, W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.network import Network, encoded, load_network, stack
from pretrain.data.decode import open_image


class Segmenter(Network):
    """A network that gives a class for every pixel."""

    def masks(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W) on the CPU: the most probable class of each pixel, of pixels uint8 (B, 3, H, W)."""
        return self.outputs(images).argmax(1).to(torch.uint8).cpu()

    def predict(self, image: bytes | str | Path) -> NDArray[np.uint8]:
        """The most probable class of every pixel of an image, uint8 of its own height and width.

        The logits are interpolated to that size, so that edges are as fine as the image's pixels.

        Raises:
            BadSample: no readable image. OSError: no such file.
        """
        decoded = open_image(encoded(image))
        pixels = self.transform.of_pixels(decoded.decode())
        logits = self.outputs(stack([pixels]))
        whole = F.interpolate(logits, (decoded.height, decoded.width), mode="bilinear", align_corners=False)
        return whole[0].argmax(0).to(torch.uint8).cpu().numpy()


def load_segmenter(source: str | Path, **options: Any) -> Segmenter:
    """Reads weights with a dense head; arguments and errors as ``load_network``."""
    return Segmenter(**vars(load_network(source, "segmentation", **options)))
