"""Resizing of 8-bit RGB images, in the four ways that the recipes name, and masks.

bilinear and area are OpenCV's; the antialiased ones are PyTorch's, which follow Pillow's filters to one or two levels.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Filter = Callable[[Pixels, Pixels], None]  # pixels (h, w, 3), where the result goes (height, width, 3)


def _opencvs(interpolation: int) -> Filter:
    def filter(pixels: Pixels, out: Pixels) -> None:
        cv2.resize(pixels, out.shape[1::-1], dst=out, interpolation=interpolation)

    return filter


def _pytorchs(operation: Callable[..., Tensor]) -> Filter:
    def filter(pixels: Pixels, out: Pixels) -> None:
        whole = pixels if pixels.flags.writeable and pixels.flags.c_contiguous else pixels.copy()
        operation(_channels_last(whole), out.shape[:2], False, None, None, out=_channels_last(out))

    return filter


def _channels_last(pixels: Pixels) -> Tensor:
    """The same memory as (1, 3, h, w).

    By ``reshape``, which gives the batch dimension its stride: so PyTorch knows channels-last, and takes twice as quick
    a way. NumPy turns axes several times as fast as PyTorch does.
    """
    return torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))


FILTERS: dict[str, Filter] = {
    "bilinear": _opencvs(cv2.INTER_LINEAR),
    "bilinear_aa": _pytorchs(torch.ops.aten._upsample_bilinear2d_aa.out),  # what F.interpolate calls, into our memory
    "bicubic_aa": _pytorchs(torch.ops.aten._upsample_bicubic2d_aa.out),
    "area": _opencvs(cv2.INTER_AREA),
    "nearest": _opencvs(cv2.INTER_NEAREST_EXACT),  # for masks: the pixel whose centre is nearest
}
ANTIALIASED = frozenset({"bilinear_aa", "bicubic_aa", "area"})


def resize(pixels: Pixels, height: int, width: int, filter: str, out: Pixels | None = None) -> Pixels:
    """Resizes to exactly ``height`` × ``width``; the identity where that is the size already.

    Args:
        pixels: uint8 (h, w, 3).
        height: of the result.
        width: of the result.
        filter: a key of ``FILTERS``.
        out: memory for the result, uint8 (height, width, 3), contiguous; None: new memory.

    Returns:
        ``out``, or uint8 (height, width, 3).
    """
    if pixels.shape[:2] == (height, width):
        if out is None:
            return pixels
        out[...] = pixels
        return out
    if out is None:
        out = np.empty((height, width, 3), dtype=np.uint8)
    FILTERS[filter](pixels, out)
    return out
