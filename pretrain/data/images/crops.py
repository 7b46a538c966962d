"""The crops of training images, and how they are resized to the model's input.

Legend: H, W pixels of the model · box = (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.config.schema.transforms import (
    InceptionConfig,
    InceptionTfConfig,
    NativeConfig,
    ResmallConfig,
    TrainTransformConfig,
)
from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import Box, EncodedImage, inside
from pretrain.data.images.resize import ANTIALIASED, resize, window

ATTEMPTS = 10
TF_ATTEMPTS = 100  # of TensorFlow's box
NUMBERS_PER_CROP = 4 * ATTEMPTS
OVERSAMPLING = 2  # of a smaller decode, so that the antialiased filter still determines the result
REFLECTED = 4  # pixels at each edge, of the simple random crop
_JUST_BELOW_A_HALF = 0.5 - 1e-7

Numbers = NDArray[np.float64]


class Frame(NamedTuple):
    """The output of a crop.

    Attributes:
        height, width: H, W.
        filter: of the resize.
        out: memory for the result, contiguous (H, W, 3); a crop that cannot use it returns new memory.
    """

    height: int
    width: int
    filter: str
    out: Pixels | None = None


def inception_crop(image: EncodedImage, config: InceptionConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """A random area and ratio, as in torchvision, resized; see ``inception_box``."""
    return cut(image, inception_box(image.height, image.width, config, numbers), frame)


def inception_tf_crop(image: EncodedImage, config: InceptionTfConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """A random height and ratio, as in TensorFlow, resized; see ``distorted_box``."""
    return cut(image, distorted_box(image.height, image.width, config.min_area, config.ratio, numbers), frame)


def squash(image: EncodedImage, config: TrainTransformConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """The complete image, resized."""
    return cut(image, (0, 0, image.height, image.width), frame)


def simple_crop(image: EncodedImage, config: TrainTransformConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """Resizes the short side to the model's, reflects 4 pixels at each edge, and crops the model's size at random.

    Source: DeiT III (2204.07118), section 3.2, "simple random crop"; as in its code the long side is rounded down.
    """
    height, width = frame.height, frame.width
    scale = max(height / image.height, width / image.width)
    # 1e-9: image.height * (height / image.height) may come out just below the integer that it is
    resized_height = max(height, int(image.height * scale + 1e-9))
    resized_width = max(width, int(image.width * scale + 1e-9))
    top = int(numbers[0] * (resized_height + 2 * REFLECTED - height + 1))
    left = int(numbers[1] * (resized_width + 2 * REFLECTED - width + 1))
    # only the part that the crop needs is resized, with a margin to reflect that is partly cut off again
    seen_top, seen_left = max(0, top - 2 * REFLECTED), max(0, left - 2 * REFLECTED)
    seen_height = min(resized_height, top + height) - seen_top
    seen_width = min(resized_width, left + width) - seen_left
    seen = (seen_top, seen_left, seen_height, seen_width)
    part = _part_of_resized(image, (resized_height, resized_width), seen, frame.filter)
    padded = cv2.copyMakeBorder(part, REFLECTED, REFLECTED, REFLECTED, REFLECTED, cv2.BORDER_REFLECT_101)
    return inside(np.asarray(padded, dtype=np.uint8), (top - seen_top, left - seen_left, height, width))


def resmall_crop(image: EncodedImage, config: ResmallConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """Resizes the short side to ``config.short_side``, keeping the aspect, and crops a random part of the model's size.

    Source: google-research/big_vision, ``resmall_crop`` (``resize_small`` and ``random_crop``).
    """
    assert config.short_side is not None
    factor = config.short_side / min(image.height, image.width)
    resized_height, resized_width = (max(1, round(side * factor)) for side in (image.height, image.width))
    top = int(numbers[0] * (resized_height - frame.height + 1))
    left = int(numbers[1] * (resized_width - frame.width + 1))
    place = (top, left, frame.height, frame.width)
    return _part_of_resized(image, (resized_height, resized_width), place, frame.filter)


def native_crop(image: EncodedImage, config: NativeConfig, frame: Frame, numbers: Numbers) -> Pixels:
    """A random part of the image's own aspect ratio, resized; its share of the area is uniform."""
    side = math.sqrt(config.min_area + (1 - config.min_area) * numbers[0])
    height, width = (max(1, round(side * length)) for length in (image.height, image.width))
    top, left = int(numbers[1] * (image.height - height + 1)), int(numbers[2] * (image.width - width + 1))
    return cut(image, (top, left, height, width), frame)


# each has its own settings: the member of ``AnyTrainTransform`` with its name
CROPS: dict[str, Callable[[EncodedImage, Any, Frame, Numbers], Pixels]] = {
    "inception": inception_crop,
    "inception_tf": inception_tf_crop,
    "simple": simple_crop,
    "resmall": resmall_crop,
    "resize": squash,
    "native": native_crop,
}


def inception_box(height: int, width: int, config: InceptionConfig, numbers: Numbers) -> Box:
    """A random box with uniform share of the area and log-uniform ratio; the first of 10 attempts that fits.

    Args:
        height: of the image.
        width: of the image.
        config: ``min_area`` and ``ratio`` (width over height).
        numbers: uniform, (40,).

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6; attempts and fallback as in torchvision's
    RandomResizedCrop.
    """
    low, high = (math.log(value) for value in config.ratio)
    shares, ratios, tops, lefts = numbers.reshape(4, ATTEMPTS).tolist()
    for share, ratio, top, left in zip(shares, ratios, tops, lefts, strict=True):  # usually the first one fits
        area = height * width * (config.min_area + (1 - config.min_area) * share)
        aspect = math.exp(low + (high - low) * ratio)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return int(top * (height - box_height + 1)), int(left * (width - box_width + 1)), box_height, box_width
    return _central_box(height, width, config.ratio)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest central box with an allowed ratio."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def distorted_box(height: int, width: int, min_area: float, ratio: tuple[float, float], numbers: Numbers) -> Box:
    """The first of 100 random boxes whose area is large enough, or the complete image: TensorFlow's random box.

    The ratio is uniform (not log-uniform), and so is the height (not the area), so that small crops are more frequent
    than torchvision's: 35 % of the area on average at 375 × 500 pixels, compared with 42 %. If no box fits, the
    complete image is used (torchvision: its central part). A box that is smaller than the image never touches its last
    row or column.

    Args:
        height: of the image.
        width: of the image.
        min_area: smallest share of the area.
        ratio: range of the box's width over its height.
        numbers: uniform, (4 · n,): n numbers for the ratios of the first n attempts, then for heights, tops and lefts.
            More attempts take theirs from a hash of the first ones.

    Source: TensorFlow 2.15, ``sample_distorted_bounding_box_op.cc``, with the arguments of google-research/big_vision's
    ``inception_crop`` (no boxes, nothing must be covered). Its draws are kept in tests/golden/traces/tf_crops.npz.
    """
    least = float(np.float32(min_area) * np.float32(width) * np.float32(height))
    for of_ratio, of_height, of_top, of_left in _attempts(numbers):
        aspect = ratio[0] + (ratio[1] - ratio[0]) * of_ratio
        box_height, box_width = _distorted_size(height, width, least, aspect, of_height)
        if least <= box_height * box_width <= height * width and 0 < box_height <= height and 0 < box_width <= width:
            return int(of_top * (height - box_height)), int(of_left * (width - box_width)), box_height, box_width
    return 0, 0, height, width


def _distorted_size(height: int, width: int, least: float, aspect: float, of_height: float) -> tuple[int, int]:
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


def _attempts(numbers: Numbers) -> Iterator[tuple[float, float, float, float]]:
    given = numbers.reshape(4, -1)
    yield from zip(*given.tolist(), strict=True)
    left = TF_ATTEMPTS - given.shape[1]  # images with a ratio above 10 to 1 may need them
    more = seeds.uniform("distorted_box", *numbers[:4].view(np.uint64), np.arange(4 * left))
    yield from zip(*more.reshape(4, left).tolist(), strict=True)


def cut(image: EncodedImage, box: Box, frame: Frame) -> Pixels:
    """Decodes ``box``, as small as the filter allows, and resizes it to the frame.

    The input of an antialiased filter has at least twice the output's pixels per side, or the full size. On average,
    the result differs from that of a full decode by at most 3 levels (usually below 1). The box's edges are rounded to
    pixels of the smaller decode.
    """
    height, width, filter, out = frame
    if filter not in ANTIALIASED:  # a smaller decode would itself antialias
        return resize(image.decode_box(box), height, width, filter, out)
    _, _, box_height, box_width = box
    min_height = min(image.height, math.ceil(OVERSAMPLING * image.height * height / box_height))
    min_width = min(image.width, math.ceil(OVERSAMPLING * image.width * width / box_width))
    return resize(image.decode_box(box, min_height, min_width), height, width, filter, out)


def _part_of_resized(image: EncodedImage, resized: tuple[int, int], part: Box, filter: str) -> Pixels:
    way = window((image.height, image.width), resized, part)
    return inside(cut(image, way.box, Frame(way.height, way.width, filter)), way.part)
