"""Image bytes → pixels at the model's size, for training and for evaluation.

A training image's random numbers are a function of (seed, epoch, sample id): the same at any world size, in any worker,
after any resume. They are made for a whole micro-batch at once.

Legend: b images · H, W pixels of the model · box = (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.config.schema.data import EvalTransformConfig, TrainTransformConfig
from pretrain.data.decode import EncodedImage, Pixels, open_image
from pretrain.data.resize import ANTIALIASED, resize

ATTEMPTS = 10
NUMBERS_PER_IMAGE = 4 * ATTEMPTS + 1

Box = tuple[int, int, int, int]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class TrainTransform:
    """The training augmentation: crop, resize, flip.

    Args:
        config: which, and how strong.
        height: H.
        width: W.
        seed: of the experiment.
    """

    config: TrainTransformConfig
    height: int
    width: int
    seed: int

    def numbers(self, epochs: NDArray[np.int64], sample_ids: NDArray[np.int64]) -> Numbers:
        """Uniform numbers for b images, float64 (b, NUMBERS_PER_IMAGE)."""
        which = np.arange(NUMBERS_PER_IMAGE)
        return seeds.uniform(self.seed, "augment", epochs[:, None], sample_ids[:, None], which)

    def __call__(self, data: bytes, numbers: Numbers) -> Pixels:
        """One image, uint8 (H, W, 3).

        Args:
            data: the encoded image.
            numbers: its row of ``numbers``.

        Raises:
            BadSample: the bytes are no readable image.
        """
        image = open_image(data)
        whole = (0, 0, image.height, image.width)
        box = whole
        if self.config.crop == "inception":
            box = inception_box(image.height, image.width, self.config, numbers[: 4 * ATTEMPTS])
        pixels = self._cut(image, box)
        return pixels[:, ::-1] if numbers[-1] < self.config.hflip else pixels

    def _cut(self, image: EncodedImage, box: Box) -> Pixels:
        """Decodes, as small as the filter allows, and resizes ``box`` to the model's size."""
        if self.config.resize_filter not in ANTIALIASED:  # a smaller decode would be an antialias of its own
            return resize(_inside(image.decode(), box), self.height, self.width, self.config.resize_filter)
        _, _, box_height, box_width = box
        pixels = image.decode(
            min_height=min(image.height, math.ceil(image.height * self.height / box_height)),
            min_width=min(image.width, math.ceil(image.width * self.width / box_width)),
        )
        scaled = _scaled(box, pixels.shape[0] / image.height, pixels.shape[1] / image.width, pixels)
        return resize(_inside(pixels, scaled), self.height, self.width, self.config.resize_filter)


def inception_box(height: int, width: int, config: TrainTransformConfig, numbers: Numbers) -> Box:
    """A random box whose share of the area is uniform and whose ratio is log-uniform; the first of 10 that fits.

    Args:
        height: of the image.
        width: of the image.
        config: ``min_area`` and ``ratio`` (width over height).
        numbers: uniform, (40,).

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6; attempts and fallback as in torchvision's
    RandomResizedCrop.
    """
    share, ratio, top, left = numbers.reshape(4, ATTEMPTS)
    area = height * width * (config.min_area + (1 - config.min_area) * share)
    low, high = (math.log(value) for value in config.ratio)
    ratios = np.exp(low + (high - low) * ratio)
    widths = np.rint(np.sqrt(area * ratios)).astype(int)
    heights = np.rint(np.sqrt(area / ratios)).astype(int)
    fitting = np.flatnonzero((widths > 0) & (widths <= width) & (heights > 0) & (heights <= height))
    if not fitting.size:
        return _central_box(height, width, config.ratio)
    first = fitting[0]
    box_height, box_width = int(heights[first]), int(widths[first])
    box_top = int(top[first] * (height - box_height + 1))
    box_left = int(left[first] * (width - box_width + 1))
    return box_top, box_left, box_height, box_width


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """The largest central box whose ratio is allowed."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _scaled(box: Box, by_height: float, by_width: float, pixels: Pixels) -> Box:
    """The box in a smaller copy of the image, rounded to its pixels and never empty."""
    top, left, height, width = box
    first_row = min(round(top * by_height), pixels.shape[0] - 1)
    first_column = min(round(left * by_width), pixels.shape[1] - 1)
    end_row = max(first_row + 1, round((top + height) * by_height))
    end_column = max(first_column + 1, round((left + width) * by_width))
    return first_row, first_column, end_row - first_row, end_column - first_column


def _inside(pixels: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


@dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform: deterministic, decoded at full size.

    Args:
        config: which.
        height: H.
        width: W.
    """

    config: EvalTransformConfig
    height: int
    width: int

    def __call__(self, data: bytes) -> Pixels:
        """One image, uint8 (H, W, 3).

        Raises:
            BadSample: the bytes are no readable image.
        """
        pixels = open_image(data).decode()
        if self.config.resize == "squash":
            return resize(pixels, self.height, self.width, self.config.resize_filter)
        wanted = (round(self.height / self.config.crop_fraction), round(self.width / self.config.crop_fraction))
        height, width = wanted
        if self.config.resize == "short_side":
            scale = max(wanted[0] / pixels.shape[0], wanted[1] / pixels.shape[1])
            height = max(wanted[0], round(pixels.shape[0] * scale))
            width = max(wanted[1], round(pixels.shape[1] * scale))
        resized = resize(pixels, height, width, self.config.resize_filter)
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return _inside(resized, (top, left, self.height, self.width))
