"""Resizing of 8-bit RGB images, in the four ways that the recipes name, and masks.

bilinear and area are OpenCV's; the antialiased ones are PyTorch's, which follow Pillow's filters to one or two levels.
Differs: Google's pipelines resize with TensorFlow and cut the result off to whole levels, where we round: their pixels
are the same to one level, and 0.4 to 0.5 of a level darker on average.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.workers.faults import BadSample

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


def _memory(height: int, width: int) -> Pixels:
    try:
        return np.empty((height, width, 3), dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise BadSample("too_large", f"resized it has {width}×{height} pixels, which do not fit into memory") from error


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

    Raises:
        BadSample: the result does not fit into memory.
    """
    if pixels.shape[:2] == (height, width):
        if out is None:
            return pixels
        out[...] = pixels
        return out
    if out is None:
        out = _memory(height, width)
    FILTERS[filter](pixels, out)
    return out


def covering_size(size: tuple[int, int], wanted: tuple[int, int], *, rounded: bool = False) -> tuple[int, int]:
    """Height and width that an image is resized to, its aspect kept, to cover ``wanted`` with no more than needed.

    Args:
        size: height and width of the image.
        wanted: height and width; where they are equal, this is a resize of the short side.
        rounded: the long side is rounded to the nearest whole number, not down.

    Source: down, torchvision's ``Resize`` of one number (and timm's and Hugging Face's); to the nearest,
    google-research/big_vision's ``resize_small``, in 32-bit floats. Unequal sides: timm's ``ResizeKeepRatio``.
    """
    if wanted[0] != wanted[1]:
        shrinking = min(size[0] / wanted[0], size[1] / wanted[1])
        return max(wanted[0], round(size[0] / shrinking)), max(wanted[1], round(size[1] / shrinking))
    short = min(size)
    if rounded:
        factor = np.float32(wanted[0]) / np.float32(short)
        sides = tuple(max(wanted[0], round(float(np.float32(side) * factor))) for side in size)
    else:
        sides = tuple(wanted[0] * side // short for side in size)
    return sides[0], sides[1]
