"""Image bytes → pixels at the model's size, for training and for evaluation.

A training image's random numbers are a function of (seed, epoch, sample id), so they are the same at any world size, in
any worker, and after any resume. They are generated for a complete micro-batch at once.

Legend: b images · H, W pixels of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.config.schema.transforms import EvalTransformConfig, TrainTransformConfig
from pretrain.data.images.colour import Pixels
from pretrain.data.images.crops import CROPS, NUMBERS_PER_CROP, Frame, Numbers
from pretrain.data.images.decode import Box, EncodedImage, inside, open_image
from pretrain.data.images.masks import Mask, open_mask
from pretrain.data.images.policies.registry import Policy, build_policies
from pretrain.data.images.resize import covering_size, resize, window
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.data.workers.reader import Sample


# Incremented whenever an image file gives different evaluation pixels: a checkpoint's probe batch is only compared with
# one of the same version. 2: sizes of short_side are rounded down; profiles and orientations are always applied.
# 3: colours by numbers (cICP, nclx) are converted.
EVALUATION_PIXELS = 3


class View(NamedTuple):
    """The model's view of a sample: an image, uint8 (H, W, 3), and for sets of masks its pixels' classes, (H, W).

    ``grid`` has the rows and columns of the patches where images keep their aspect ratio (see ``images.native``).
    ``second`` is another image of the sample, where an objective compares two.
    """

    pixels: Pixels
    mask: Mask | None = None
    grid: tuple[int, int] | None = None
    second: Pixels | None = None


@dataclass(frozen=True)
class TrainTransform:
    """The training augmentation: crop, resize, flip, then the policies that change colours and geometry.

    Args:
        config: the augmentations and their strengths.
        height: H.
        width: W.
        seed: of the experiment.
        mean: of the normalisation; some policies use it as fill colour.
        views: 1, or 2 images of each sample, each with numbers of its own.
    """

    config: TrainTransformConfig
    height: int
    width: int
    seed: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    views: int = 1

    @cached_property
    def policies(self) -> dict[str, Policy]:
        """The enabled policies, in order."""
        return build_policies(self.config, self.mean)

    def numbers(
        self, epochs: NDArray[np.int64], sample_ids: NDArray[np.int64], copies: NDArray[np.int64] | None = None
    ) -> Numbers:
        """Uniform numbers for b images, float64 (b, views · n): of each view for the crop, the flip, then each policy.

        Args:
            epochs: (b,) in which the images are drawn.
            sample_ids: (b,)
            copies: (b,) index among the repetitions of a sample in a batch; None: no repetition.
        """
        keys = (epochs[:, None], sample_ids[:, None], *(() if copies is None else (copies[:, None],)))
        parts = []
        for use in ("augment", "augment_second")[: self.views]:
            parts.append(seeds.uniform(self.seed, use, *keys, np.arange(NUMBERS_PER_CROP + 1)))
            for name, policy in self.policies.items():
                parts.append(seeds.uniform(self.seed, f"{use}.{name}", *keys, np.arange(policy.num_numbers)))
        return np.concatenate(parts, axis=1)

    def __call__(self, data: bytes, numbers: Numbers, out: Pixels | None = None) -> Pixels:
        """One image, uint8 (H, W, 3).

        Args:
            data: the encoded image.
            numbers: its row of ``numbers``, those of one view.
            out: memory for the image, contiguous; None: new memory.

        Raises:
            BadSample: the bytes are not a readable image; ``out`` may contain a part of it.
        """
        return self.of_image(open_image(data), numbers, out)

    def at_size(self, size: tuple[int, int]) -> TrainTransform:
        """The same with results of this height and width."""
        return replace(self, height=size[0], width=size[1])

    def of_image(self, image: EncodedImage, numbers: Numbers, out: Pixels | None = None) -> Pixels:
        """Like a call, for an image whose header was read; ``out`` decides the size."""
        if out is None:
            out = np.empty((self.height, self.width, 3), dtype=np.uint8)
        flipped = numbers[NUMBERS_PER_CROP] < self.config.hflip
        frame = Frame(out.shape[0], out.shape[1], self.config.resize_filter, None if flipped else out)
        pixels = CROPS[self.config.crop](image, self.config, frame, numbers[:NUMBERS_PER_CROP])
        if flipped:
            cv2.flip(pixels, 1, dst=out)
        elif pixels is not out:
            out[...] = pixels
        return self._apply_policies(out, numbers[NUMBERS_PER_CROP + 1 :]) if self.policies else out

    def pair(self, sample: Sample, numbers: Numbers, out: Pixels | None = None) -> View:
        """Like a call, with the sample's mask cropped and flipped in the same way, and with its second view.

        Raises:
            BadSample: the image or the mask is unreadable, or they have different sizes.
        """
        image = open_image(sample.data)
        first, *others = np.split(numbers, self.views)
        second = self.of_image(image, others[0]) if others else None
        if sample.mask is None:
            return View(self.of_image(image, first, out), second=second)
        mask = open_mask(sample.mask, image.height, image.width, sample.num_classes)
        cut = self._of_masks.of_image(mask, first[: NUMBERS_PER_CROP + 1])
        return View(self.of_image(image, first, out), cut[:, :, 0], second)

    @cached_property
    def _of_masks(self) -> TrainTransform:
        """The same crop and flip for masks: nearest pixel, without policies."""
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
    """The evaluation transform to one fixed size: deterministic, decoded at full size.

    Args:
        config: its settings.
        height: H.
        width: W.

    Raises:
        ConfigError: ``resize: native``, which has no fixed size.
    """

    views: ClassVar[int] = 1

    config: EvalTransformConfig
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.config.is_native:
            raise ConfigError(
                "resize: native keeps every image's aspect ratio, which is done by the evaluations of a training only; "
                "for images of one size use short_side, resmall, squash or squash_crop (--resize)"
            )

    def __call__(self, data: bytes) -> Pixels:
        """One image, uint8 (H, W, 3).

        Raises:
            BadSample: the bytes are not a readable image.
        """
        return self.of_pixels(open_image(data).decode())

    def pair(self, sample: Sample) -> View:
        """Like a call, with the sample's mask cropped in the same way.

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
        """Like a call, for an image that was decoded at full size."""
        if self.config.resize == "squash":
            return resize(pixels, self.height, self.width, self.config.resize_filter)
        size = (pixels.shape[0], pixels.shape[1])
        height, width, top, left = self._before_crop(size)
        way = window(size, (height, width), (top, left, self.height, self.width))
        resized = resize(inside(pixels, way.box), way.height, way.width, self.config.resize_filter)
        return inside(resized, way.part)

    def seen(self, height: int, width: int) -> Box:
        """The part of an image that the result shows, in the image's own pixels, rounded.

        Args:
            height: of the image.
            width: of the image.
        """
        if self.config.resize == "squash":
            return 0, 0, height, width
        rows, columns, top, left = self._before_crop((height, width))
        y, num_rows = _scaled(top, self.height, height / rows, height)
        x, num_columns = _scaled(left, self.width, width / columns, width)
        return y, x, num_rows, num_columns

    def _before_crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Height and width of the resized image of ``size``, and the crop's first row and column in it."""
        height, width = self.config.before_crop(self.height), self.config.before_crop(self.width)
        rounded = self.config.resize == "resmall"
        if rounded or self.config.resize == "short_side":
            height, width = covering_size(size, (height, width), rounded=rounded)
        top, left = (height - self.height) / 2, (width - self.width) / 2  # rounded as in torchvision or big_vision
        top, left = (int(top), int(left)) if rounded else (round(top), round(left))
        return height, width, top, left


def _scaled(first: int, length: int, factor: float, side: int) -> tuple[int, int]:
    """A span of a resized image's side in the pixels of the image; at least one of its ``side`` pixels."""
    start = min(max(round(first * factor), 0), side - 1)
    return start, min(max(round(length * factor), 1), side - start)
