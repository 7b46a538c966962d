"""Segmentation masks: a class for every pixel, cropped and resized exactly like their images.

The class is the number that a grey or palette image stores for a pixel.
A mask is handled as an image of three equal channels, so that the same code crops, flips and resizes both. Only the
filter differs: masks use the nearest pixel, since classes cannot be interpolated.

Legend: h, w pixels of the file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.data.images.colour import Pixels
from pretrain.data.images.containers import grey_png_depth, is_16_bit_png
from pretrain.data.images.decode import Box, inside
from pretrain.data.images.opening import opened, orientation_of, upright
from pretrain.errors import BadSample

Mask = NDArray[np.uint8]
FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # lossless, and the stored numbers can be read
MODES = ("L", "P", "1", "I;16", "I;16B", "I")  # one channel; for a palette, the indices are the classes
COLOURS = ("RGB", "RGBA", "LA")

_SPREAD = {2: 85, 4: 17}  # bits of a grey pixel → what Pillow multiplies it by
_PHOTOMETRIC, _BITS, _WHITE_IS_ZERO = 262, 258, 0  # TIFF tags, and a value


class MaskImage:
    """Wraps a mask as a ``decode.EncodedImage`` for the crops; it is never decoded smaller."""

    def __init__(self, mask: Mask) -> None:
        self._pixels = np.repeat(mask[:, :, None], 3, axis=2)
        self.height, self.width = mask.shape

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """uint8 (h, w, 3)."""
        return self._pixels

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The part of the mask in a box."""
        return inside(self._pixels, box)


def read_mask(data: bytes) -> Mask:
    """The classes of a mask's pixels, uint8 (h, w), upright.

    Raises:
        BadSample: as ``read_numbers``, or numbers above 255.
    """
    numbers = read_numbers(data)[0]
    largest = numbers.max(initial=0)
    if largest > 255:
        raise BadSample("mask", f"a pixel is {largest}; classes are numbers from 0 to 254, 255 is none")
    return numbers.astype(np.uint8)


def read_numbers(data: bytes) -> tuple[NDArray[np.integer], int]:
    """The stored numbers of a mask's pixels, (h, w), upright, and the EXIF orientation of the file.

    A viewer may show other values: a set pixel of a 1-bit file is 1, not 255, and for a palette it is the index.

    Raises:
        BadSample: not a readable image in a lossless format, or one with several different channels.
    """
    try:
        with opened(data, formats=FORMATS) as image:
            image.load()
            orientation = orientation_of(image)
            return upright(_stored(image, data), orientation), orientation
    except BadSample as bad:
        raise bad if bad.kind == "too_large" else BadSample("mask", bad.detail) from bad


def _stored(image: Image.Image, data: bytes) -> NDArray[np.integer]:
    values = np.asarray(image)
    if image.mode in COLOURS:
        return _one_of(values, image, data)
    if image.mode not in MODES:
        raise BadSample("mask", f"mode {image.mode}; a mask has one channel (or a palette): a number per pixel")
    if image.format == "TIFF" and _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise BadSample("mask", "a TIFF whose 0 is white, which readers turn round; store it as PNG")
    if image.mode == "1":
        return values.astype(np.uint8)
    if image.mode == "L":  # 2 and 4 bits are spread over 0 … 255 when they are read
        depth = _tiff_tag(image, _BITS) if image.format == "TIFF" else grey_png_depth(data)
        return values // _SPREAD.get(depth or 8, 1)
    if values.min(initial=0) < 0:
        raise BadSample("mask", f"a pixel is {values.min()}; a mask's numbers are not negative")
    return values


def _one_of(values: NDArray[np.uint8], image: Image.Image, data: bytes) -> NDArray[np.uint8]:
    """The channel of a grey picture that is stored with several channels."""
    if is_16_bit_png(data):
        raise BadSample("mask", f"mode {image.mode} of 16 bits; a mask of 16 bits has one channel")
    colours = values if image.mode == "RGB" else values[:, :, :-1]
    if image.mode != "RGB" and (values[:, :, -1] != 255).any():
        raise BadSample("mask", "it is partly transparent; a mask has one channel (or a palette): a number per pixel")
    if (colours != colours[:, :, :1]).any():
        text = "colours, not numbers; give each class its number: a mask has one channel (or a palette)"
        raise BadSample("mask", text)
    return colours[:, :, 0]


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def open_mask(data: bytes, height: int, width: int, num_classes: int) -> MaskImage:
    """A mask for an upright image of this size, in a set with this number of classes.

    Raises:
        BadSample: as ``read_mask``; the mask has another size, or a number that is not a class.
    """
    mask = read_mask(data)
    if mask.shape != (height, width):
        raise BadSample("mask", f"{mask.shape[1]}×{mask.shape[0]} pixels, but its image has {width}×{height}")
    beyond = mask[(mask >= num_classes) & (mask != IGNORED_PIXEL)]
    if beyond.size:
        raise BadSample("mask", f"a pixel is {beyond.max()}, but the set has {num_classes} classes (255: none)")
    return MaskImage(mask)
