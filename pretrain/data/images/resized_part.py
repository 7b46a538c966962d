"""A part of a resized image, without making the rest of it where that would be huge.

An image of 40,000 × 1 pixels whose short side is resized to 224 has two billion pixels, of which 224 × 224 are wanted.
Above ``MOST_PIXELS`` the image is cropped first, with a margin for the filter; images of usual shapes never are, so
what they give does not change.

Legend: a *span* is (first, length) along one side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pretrain.data.images.decode import Box

MOST_PIXELS = 1 << 25  # of a resized image: 100 MB, at 224 pixels a ratio of 668 to 1
_MARGIN = 3  # pixels that a cubic filter sees beside a place, and one more
_SEARCHED = 64  # pixels among which an edge is chosen that lies on the resized image's grid


class Window(NamedTuple):
    """How a part of a resized image is made: crop ``box``, resize that to ``height`` × ``width``, take ``part``."""

    box: Box
    height: int
    width: int
    part: Box


def window(size: tuple[int, int], resized: tuple[int, int], part: Box) -> Window:
    """The way to a part of a resized image, which makes the rest of it only where that is small.

    Args:
        size: height and width of the image.
        resized: those that it is resized to.
        part: what is wanted of the resized image.
    """
    if math.prod(resized) <= MOST_PIXELS:
        return Window((0, 0, *size), *resized, part)
    top, height, resized_height, part_top = _cropped(size[0], resized[0], part[0], part[2])
    left, width, resized_width, part_left = _cropped(size[1], resized[1], part[1], part[3])
    return Window((top, left, height, width), resized_height, resized_width, (part_top, part_left, *part[2:]))


def _cropped(side: int, resized: int, first: int, length: int) -> tuple[int, int, int, int]:
    """The span of the image, what it is resized to, and where the part begins in that.

    Resized alone, the span has its pixels where the whole image would have them, but for the part of a pixel by which
    its edges miss the resized image's grid. So edges are looked for that miss it least.
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
