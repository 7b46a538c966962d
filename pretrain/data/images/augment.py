"""Image bytes → pixels at the model's size, for training and for evaluation.

A training image's random numbers are a function of (seed, epoch, sample id): the same at any world size, in any worker,
after any resume. They are made for a whole micro-batch at once.

Legend: b images · H, W pixels of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.config.schema.data import EvalTransformConfig, TrainTransformConfig
from pretrain.data.images.crops import CROPS, NUMBERS_PER_CROP, Frame, Numbers
from pretrain.data.images.decode import EncodedImage, Pixels, inside, open_image
from pretrain.data.images.masks import Mask, open_mask
from pretrain.data.images.policies.protocol import Policy
from pretrain.data.images.policies.registry import build_policies
from pretrain.data.images.resize import covering_size, resize, window

if TYPE_CHECKING:
    from pretrain.data.workers.reader import Sample


# Raised whenever an image file becomes other evaluation pixels than before: a checkpoint's probe batch is compared only
# with one of the same pixels. 2: sizes of short_side are rounded down; profiles and orientations are always applied.
# 3: colours by numbers (cICP, nclx) are converted.
EVALUATION_PIXELS = 3


class View(NamedTuple):
    """What is seen of a sample: an image, uint8 (H, W, 3), and in a set of masks the classes of its pixels, (H, W)."""

    pixels: Pixels
    mask: Mask | None = None


@dataclass(frozen=True)
class TrainTransform:
    """The training augmentation: crop, resize, flip, then the policies that change colours and geometry.

    Args:
        config: which, and how strong.
        height: H.
        width: W.
        seed: of the experiment.
        mean: of the normalisation; some policies fill with it.
    """

    config: TrainTransformConfig
    height: int
    width: int
    seed: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """Those that are switched on, in their order."""
        return build_policies(self.config, self.mean)

    def numbers(
        self, epochs: NDArray[np.int64], sample_ids: NDArray[np.int64], copies: NDArray[np.int64] | None = None
    ) -> Numbers:
        """Uniform numbers for b images, float64 (b, n): those of the crop, of the flip, then of each policy.

        Args:
            epochs: (b,) in which the images are drawn.
            sample_ids: (b,)
            copies: (b,) which of the repetitions of a sample in a batch this is; None: nothing is repeated.
        """
        keys = (epochs[:, None], sample_ids[:, None], *(() if copies is None else (copies[:, None],)))
        parts = [seeds.uniform(self.seed, "augment", *keys, np.arange(NUMBERS_PER_CROP + 1))]
        for name, policy in self.policies.items():
            parts.append(seeds.uniform(self.seed, f"augment.{name}", *keys, np.arange(policy.num_numbers)))
        return np.concatenate(parts, axis=1)

    def __call__(self, data: bytes, numbers: Numbers, out: Pixels | None = None) -> Pixels:
        """One image, uint8 (H, W, 3).

        Args:
            data: the encoded image.
            numbers: its row of ``numbers``.
            out: memory for the image, contiguous; None: new memory.

        Raises:
            BadSample: the bytes are no readable image; ``out`` may hold a part of it.
        """
        return self.of_image(open_image(data), numbers, out)

    def of_image(self, image: EncodedImage, numbers: Numbers, out: Pixels | None = None) -> Pixels:
        """As a call, of an image whose header was read."""
        if out is None:
            out = np.empty((self.height, self.width, 3), dtype=np.uint8)
        flipped = numbers[NUMBERS_PER_CROP] < self.config.hflip
        frame = Frame(self.height, self.width, self.config.resize_filter, None if flipped else out)
        pixels = CROPS[self.config.crop](image, self.config, frame, numbers[:NUMBERS_PER_CROP])
        if flipped:
            cv2.flip(pixels, 1, dst=out)
        elif pixels is not out:
            out[...] = pixels
        return self._apply_policies(out, numbers[NUMBERS_PER_CROP + 1 :]) if self.policies else out

    def pair(self, sample: Sample, numbers: Numbers, out: Pixels | None = None) -> View:
        """As a call, and the sample's mask cut and flipped alike.

        Raises:
            BadSample: the image or the mask is unreadable, or they have different sizes.
        """
        image = open_image(sample.data)
        if sample.mask is None:
            return View(self.of_image(image, numbers, out))
        mask = open_mask(sample.mask, image.height, image.width, sample.num_classes)
        cut = self._of_masks.of_image(mask, numbers[: NUMBERS_PER_CROP + 1])
        return View(self.of_image(image, numbers, out), cut[:, :, 0])

    @cached_property
    def _of_masks(self) -> TrainTransform:
        """The same crop and flip by the nearest pixel, without policies."""
        return replace(self, config=self.config.of_masks())

    def _apply_policies(self, out: Pixels, numbers: Numbers) -> Pixels:
        pixels = out
        for policy in self.policies.values():
            pixels = policy(np.ascontiguousarray(pixels), numbers[: policy.num_numbers])
            numbers = numbers[policy.num_numbers :]
        out[...] = pixels
        return out


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
        return self.of_pixels(open_image(data).decode())

    def pair(self, sample: Sample) -> View:
        """As a call, and the sample's mask cut alike.

        Raises:
            BadSample: the image or the mask is unreadable, or they have different sizes.
        """
        pixels = open_image(sample.data).decode()
        if sample.mask is None:
            return View(self.of_pixels(pixels))
        height, width = pixels.shape[:2]
        mask = open_mask(sample.mask, height, width, sample.num_classes).decode()
        nearest = replace(self, config=self.config.model_copy(update={"resize_filter": "nearest"}))
        return View(self.of_pixels(pixels), nearest.of_pixels(mask)[:, :, 0])

    def of_pixels(self, pixels: Pixels) -> Pixels:
        """As a call, of an image that was decoded at full size."""
        if self.config.resize == "squash":
            return resize(pixels, self.height, self.width, self.config.resize_filter)
        size = (pixels.shape[0], pixels.shape[1])
        height, width = self.config.before_crop(self.height), self.config.before_crop(self.width)
        rounded = self.config.resize == "resmall"
        if rounded or self.config.resize == "short_side":
            height, width = covering_size(size, (height, width), rounded=rounded)
        top, left = (height - self.height) / 2, (width - self.width) / 2  # rounded as torchvision, or as big_vision
        top, left = (int(top), int(left)) if rounded else (round(top), round(left))
        way = window(size, (height, width), (top, left, self.height, self.width))
        resized = resize(inside(pixels, way.box), way.height, way.width, self.config.resize_filter)
        return inside(resized, way.part)
