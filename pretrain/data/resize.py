"""Resizing of 8-bit RGB images, in the four ways that the recipes name.

bilinear and area are OpenCV's; the antialiased ones are PyTorch's, which follow Pillow's filters to one or two levels.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def _bilinear(pixels: Pixels, height: int, width: int) -> Pixels:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)  # pyright: ignore[reportReturnType]


def _area(pixels: Pixels, height: int, width: int) -> Pixels:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)  # pyright: ignore[reportReturnType]


def _antialiased(pixels: Pixels, height: int, width: int, mode: str) -> Pixels:
    whole = pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy()
    # the batch dimension first: with its stride right, PyTorch knows channels-last and takes twice as quick a way
    image = torch.from_numpy(whole)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(image, (height, width), mode=mode, antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).numpy()[0]


FILTERS: dict[str, Callable[[Pixels, int, int], Pixels]] = {
    "bilinear": _bilinear,
    "bilinear_aa": lambda pixels, height, width: _antialiased(pixels, height, width, "bilinear"),
    "bicubic_aa": lambda pixels, height, width: _antialiased(pixels, height, width, "bicubic"),
    "area": _area,
}
ANTIALIASED = frozenset({"bilinear_aa", "bicubic_aa", "area"})


def resize(pixels: Pixels, height: int, width: int, filter: str) -> Pixels:
    """Resizes to exactly ``height`` × ``width``; the identity where that is the size already.

    Args:
        pixels: uint8 (h, w, 3).
        height: of the result.
        width: of the result.
        filter: a key of ``FILTERS``.

    Returns:
        uint8 (height, width, 3).
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    return FILTERS[filter](pixels, height, width)
