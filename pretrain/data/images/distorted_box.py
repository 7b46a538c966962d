"""TensorFlow's random box, which Google's recipes crop with. Its distribution differs from torchvision's.

The ratio is uniform (not log-uniform), and so is the height (not the area), so that small crops are more frequent: 35 %
of the area on average at 375 × 500 pixels, compared with torchvision's 42 %. If no box fits, the complete image is used
(torchvision: its central part). A box that is smaller than the image never touches its last row or column.

Legend: box = (top, left, height, width) in pixels.
Source: TensorFlow 2.15, ``sample_distorted_bounding_box_op.cc``, with the arguments of google-research/big_vision's
``inception_crop`` (no boxes, nothing must be covered). Its draws are kept in tests/golden/traces/tf_crops.npz.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.data.images.decode import Box

ATTEMPTS = 100
_JUST_BELOW_A_HALF = 0.5 - 1e-7


def distorted_box(
    height: int, width: int, min_area: float, ratio: tuple[float, float], numbers: NDArray[np.float64]
) -> Box:
    """The first of 100 random boxes whose area is large enough, or the complete image.

    Args:
        height: of the image.
        width: of the image.
        min_area: smallest share of the area.
        ratio: range of the box's width over its height.
        numbers: uniform, (4 · n,): n numbers for the ratios of the first n attempts, then for heights, tops and lefts.
            More attempts take theirs from a hash of the first ones.
    """
    least = float(np.float32(min_area) * np.float32(width) * np.float32(height))
    for of_ratio, of_height, of_top, of_left in _attempts(numbers):
        aspect = ratio[0] + (ratio[1] - ratio[0]) * of_ratio
        box_height, box_width = _size(height, width, least, aspect, of_height)
        if least <= box_height * box_width <= height * width and 0 < box_height <= height and 0 < box_width <= width:
            return int(of_top * (height - box_height)), int(of_left * (width - box_width)), box_height, box_width
    return 0, 0, height, width


def _size(height: int, width: int, least: float, aspect: float, of_height: float) -> tuple[int, int]:
    """Height and width of a box of about ``aspect``; corrected if rounding made its area too small."""
    tallest = round(math.sqrt(height * width / aspect))
    if round(tallest * aspect) > width:
        tallest = int((width + _JUST_BELOW_A_HALF) / aspect)
    tallest = min(height, tallest)
    shortest = min(tallest, round(math.sqrt(least / aspect)))
    box_height = shortest + int(of_height * (tallest - shortest + 1))
    if box_height * round(box_height * aspect) < least:
        box_height += 1
    if box_height * round(box_height * aspect) > height * width:
        box_height -= 1
    return box_height, round(box_height * aspect)


def _attempts(numbers: NDArray[np.float64]) -> Iterator[tuple[float, float, float, float]]:
    given = numbers.reshape(4, -1)
    yield from zip(*given.tolist(), strict=True)
    left = ATTEMPTS - given.shape[1]  # images with a ratio above 10 to 1 may need them
    more = seeds.uniform("distorted_box", *numbers[:4].view(np.uint64), np.arange(4 * left))
    yield from zip(*more.reshape(4, left).tolist(), strict=True)
