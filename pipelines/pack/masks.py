"""Prepares a segmentation mask for packing: a grey PNG of class numbers, of the size of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.pack.images import PackedImage
from pipelines.sources.array_sets import encode_grey
from pipelines.sources.options import Option
from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.data.images.masks import Mask, read_numbers
from pretrain.data.images.opening import upright
from pretrain.errors import BadSample, ConfigError

MASK_EXTENSION = "seg.png"
ORIENTATIONS = ("auto", "stored", "upright")
OPTIONS = (
    Option(
        "reduce_zero_label",
        "masks: 0 is not a class, and k + 1 means class k (ADE20K)",
        default=False,
        is_flag=True,
    ),
    Option("mask_values", "masks: the number of each class (0,1,…), such as 0,255", metavar="N,…"),
    Option("mask_none", "masks: numbers of pixels without a class (255)", metavar="N,…"),
    Option(
        "mask_orientation",
        "masks of images with an EXIF orientation: as the image is stored, or upright (auto: their size tells)",
        default="auto",
        choices=ORIENTATIONS,
    ),
    Option("allow_empty_classes", "masks: a class may occur in none of them", default=False, is_flag=True),
)
TURNED = "mask turned with its image"
_LARGEST = 65_535
_UNKNOWN = -1


@dataclass(frozen=True)
class MaskOptions:
    """The meaning of a mask's numbers, and its orientation.

    Attributes:
        num_classes: K.
        values: the number that each class is stored as, in their order; (): 0 … K − 1.
        none: numbers of pixels that have no class; (): 255, unless a class is stored as that.
        orientation: of masks whose images have an EXIF orientation: as the image is "stored", "upright", or determined
            by their size (auto).
    """

    num_classes: int = 0
    values: tuple[int, ...] = ()
    none: tuple[int, ...] = ()
    orientation: str = "auto"

    @classmethod
    def of(cls, num_classes: int, *, values: str, none: str, reduce_zero_label: bool, orientation: str) -> MaskOptions:
        """Parses the command line's options.

        Args:
            num_classes: K.
            values: numbers with commas between them, or "".
            none: likewise.
            reduce_zero_label: 0 means no class, and k + 1 means class k (ADE20K's files).
            orientation: one of ``ORIENTATIONS``.

        Raises:
            ConfigError: malformed numbers, not one for every class, or two meanings for one.
        """
        if reduce_zero_label:
            if values or none:
                raise ConfigError(
                    "--reduce-zero-label gives the meaning of the masks' numbers; leave out --mask-values and -none"
                )
            return cls(num_classes, tuple(range(1, num_classes + 1)), (0, IGNORED_PIXEL), orientation)
        made = cls(num_classes, _numbers(values, "--mask-values"), _numbers(none, "--mask-none"), orientation)
        if made.values and len(made.values) != num_classes:
            raise ConfigError(f"--mask-values names {len(made.values)} numbers, but there are {num_classes} classes")
        twice = [number for number in made.none if number in made.of_classes]
        if twice:
            raise ConfigError(f"--mask-none {twice[0]}: that is the number of class {made.of_classes.index(twice[0])}")
        return made

    @property
    def of_classes(self) -> Sequence[int]:
        """The number of each class."""
        return self.values or range(self.num_classes)

    @property
    def of_none(self) -> tuple[int, ...]:
        """The numbers of pixels without a class."""
        return self.none or (() if IGNORED_PIXEL in self.of_classes else (IGNORED_PIXEL,))

    @cached_property
    def table(self) -> NDArray[np.int16]:
        """Stored number → class, 255 for no class, ``_UNKNOWN`` for any other number."""
        table = np.full(_LARGEST + 1, _UNKNOWN, dtype=np.int16)
        table[list(self.of_none)] = IGNORED_PIXEL
        table[list(self.of_classes)] = np.arange(self.num_classes)
        return table


class PackedMask(NamedTuple):
    """Bytes to pack, the classes in them, the stored numbers that occur, and whether it was turned with its image."""

    data: bytes
    classes: Mask
    numbers: NDArray[np.integer]
    was_turned: bool


def make_mask(data: bytes, image: PackedImage, options: MaskOptions) -> PackedMask:
    """Reads a mask and maps its pixels to class numbers.

    Args:
        data: the mask's file.
        image: the image of the mask.
        options: the meaning of its numbers.

    Raises:
        BadSample: not a mask of that size, or a number in it is not a class.
    """
    stored, was_turned = _as_its_image(*read_numbers(data), image, options.orientation)
    numbers = np.unique(stored)
    unknown = [number for number in numbers.tolist() if number > _LARGEST or options.table[number] == _UNKNOWN]
    if unknown:
        raise BadSample("mask", _unknown(unknown[-1], options))
    mask = options.table[stored].astype(np.uint8)
    if mask.shape != image.size:
        mask = np.asarray(Image.fromarray(mask).resize((image.size[1], image.size[0]), Image.Resampling.NEAREST))
    return PackedMask(encode_grey(mask), mask, numbers, was_turned)


def _as_its_image(
    stored: NDArray[np.integer], own: int, image: PackedImage, orientation: str
) -> tuple[NDArray[np.integer], bool]:
    """The mask in the orientation of its upright image, and whether it was rotated.

    A mask with its own EXIF orientation is rotated by that. Otherwise, if the image has one, the mask's size determines
    its orientation, except where both orientations have the same size.
    """
    if image.orientation != 1 and own == 1 and orientation != "upright":
        turned = upright(stored, image.orientation)
        by_size = turned.shape == image.original, stored.shape == image.original
        if orientation == "auto" and by_size == (True, True):
            raise BadSample(
                "mask",
                f"its image is turned by EXIF orientation {image.orientation}, and its size does not tell whether the "
                "mask is turned too: --mask-orientation stored (it fits the pixels as they are stored) or upright",
            )
        if by_size[0] and (orientation == "stored" or not by_size[1]):
            return turned, True
        if orientation == "stored":
            raise _wrong_size(turned, image)
    if stored.shape != image.original:
        raise _wrong_size(stored, image)
    return stored, False


def _wrong_size(mask: NDArray[np.integer], image: PackedImage) -> BadSample:
    height, width = image.original
    return BadSample("mask", f"{mask.shape[1]}×{mask.shape[0]} pixels, its image {width}×{height}")


def _unknown(number: int, options: MaskOptions) -> str:
    none = ", ".join(map(str, options.of_none))
    known = f"classes are {_shown(options.of_classes)}" + (f", none is {none}" if none else "")
    hint = "--mask-values NUMBER,… gives the number of each class and --mask-none those of no class"
    if not options.values and number == options.num_classes:
        hint += "; --reduce-zero-label where numbers begin at 1 and 0 is not a class"
    return f"a pixel is {number}, but {known}: {hint}"


def _shown(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers[:16]) + (", …" if len(numbers) > 16 else "")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isascii() and word.isdecimal() and int(word) <= _LARGEST for word in words):
        raise ConfigError(f"{option} {text}: write whole numbers from 0 to {_LARGEST} with commas, such as 0,255")
    numbers = tuple(int(word) for word in words)
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{option} {text}: a number is named twice")
    return numbers
