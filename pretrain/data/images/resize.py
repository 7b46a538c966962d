"""Resizes 8-bit RGB images and masks, and computes parts of huge resized images.

``bilinear`` and ``area`` are OpenCV's filters; the antialiased ones are PyTorch's, which match Pillow's to one or two
levels. Differs: Google's pipelines resize with TensorFlow and truncate the result to integer levels, where we round.
Their pixels differ by at most one level, and are 0.4 to 0.5 of a level darker on average.

``window``: an image of 40,000 × 1 pixels whose short side is resized to 224 has two billion pixels, of which 224 × 224
are needed. Above ``MOST_PIXELS``, the image is cropped first, with a margin for the filter. Images of usual shapes are
never cropped first, so this does not affect their results.

Legend: a *span* is (first, length) along one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import Box
from pretrain.errors import BadSample

MOST_PIXELS = 1 << 25  # of a resized image: 100 MB; at 224 pixels a ratio of sides of 668 to 1
_MARGIN = 3  # pixels: a cubic filter reads two on each side of a place, and one more for rounding
_SEARCHED = 64  # pixels among which to look for an edge close to the resized image's grid

Filter = Callable[[Pixels, Pixels], None]  # pixels (h, w, 3), destination (height, width, 3)


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

    ``reshape`` gives the batch dimension the stride by which PyTorch recognises channels-last; its kernel for that is
    twice as fast. NumPy permutes axes several times as fast as PyTorch.
    """
    return torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))


FILTERS: dict[str, Filter] = {
    "bilinear": _opencvs(cv2.INTER_LINEAR),
    "bilinear_aa": _pytorchs(torch.ops.aten._upsample_bilinear2d_aa.out),  # as F.interpolate, but into our memory
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
    """Resizes to exactly ``height`` × ``width``; does nothing if the image has this size already.

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
    """The smallest height and width of an image's aspect ratio that cover ``wanted``.

    Args:
        size: height and width of the image.
        wanted: height and width; if they are equal, this is a resize of the short side.
        rounded: round the long side to the nearest integer instead of down.

    Source: rounded down, torchvision's ``Resize`` of one number (and timm's and Hugging Face's); to the nearest,
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


class Window(NamedTuple):
    """How to compute a part of a resized image: crop ``box``, resize it to ``height`` × ``width``, take ``part``."""

    box: Box
    height: int
    width: int
    part: Box


def window(size: tuple[int, int], resized: tuple[int, int], part: Box) -> Window:
    """How to compute a part of a resized image, without computing all of it if it would be huge.

    Args:
        size: height and width of the image.
        resized: height and width after resizing.
        part: the box of the resized image.
    """
    if math.prod(resized) <= MOST_PIXELS:
        return Window((0, 0, *size), *resized, part)
    top, height, resized_height, part_top = _cropped(size[0], resized[0], part[0], part[2])
    left, width, resized_width, part_left = _cropped(size[1], resized[1], part[1], part[3])
    return Window((top, left, height, width), resized_height, resized_width, (part_top, part_left, *part[2:]))


def _cropped(side: int, resized: int, first: int, length: int) -> tuple[int, int, int, int]:
    """Along one side: the span of the image to crop, its length after resizing, and the start of the part in it.

    If only the span is resized, its pixels are shifted, compared with those of the complete image, by the fraction of
    a pixel by which the span's edges miss the resized image's grid. So the edges closest to the grid are chosen.
    """
    scale = resized / side
    margin = math.ceil(_MARGIN * max(1.0, 1 / scale))
    last_start = math.floor(first / scale) - margin
    first_stop = math.ceil((first + length) / scale) + margin
    start = _on_grid(np.arange(last_start, last_start - _SEARCHED, -1), scale) if last_start > 0 else 0
    stop = _on_grid(np.arange(first_stop, first_stop + _SEARCHED), scale) if first_stop < side else side
    start, stop = max(start, 0), min(stop, side)
    offset = round(start * scale)
    return start, stop - start, round(stop * scale) - offset, first - offset


def _on_grid(edges: np.ndarray, scale: float) -> int:
    places = edges * scale
    return int(edges[np.abs(places - np.rint(places)).argmin()])
