"""Segmentation masks: the class of every pixel as a grey PNG, cut and resized exactly as their images are.

A mask is handled as an image of three equal channels, so that crops, flips and resizing are the same code for both;
only the filter differs: the nearest pixel, since there is nothing between two classes.

Legend: h, w pixels of the file.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.decode import Box, Pixels, inside
from pretrain.data.faults import BadSample

Mask = NDArray[np.uint8]
MODES = ("L", "P", "1", "I;16", "I")  # one channel; of a palette the indices count


class MaskImage:
    """A mask as crops see an image (``decode.EncodedImage``); it is never decoded smaller."""

    def __init__(self, mask: Mask) -> None:
        self._pixels = np.repeat(mask[:, :, None], 3, axis=2)
        self.height, self.width = mask.shape

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """uint8 (h, w, 3)."""
        return self._pixels

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The part of it in a box."""
        return inside(self._pixels, box)


def read_mask(data: bytes) -> Mask:
    """The classes of a mask's pixels, uint8 (h, w).

    Raises:
        BadSample: no readable image, one with several channels, or numbers above 255.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode not in MODES:
                raise BadSample("mask", f"mode {image.mode}; a mask has one channel (or a palette): a number per pixel")
            values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except BadSample:
        raise
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged data
        raise BadSample("mask", f"cannot be decoded ({type(error).__name__})") from error
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise BadSample("mask", f"a pixel is {values.max()}; classes are numbers from 0 to 254, 255 is none")
    return values.astype(np.uint8)


def open_mask(data: bytes, height: int, width: int) -> MaskImage:
    """A mask for an upright image of that size.

    Raises:
        BadSample: as ``read_mask``, or of another size.
    """
    mask = read_mask(data)
    if mask.shape != (height, width):
        raise BadSample("mask", f"{mask.shape[1]}×{mask.shape[0]} pixels, but its image has {width}×{height}")
    return MaskImage(mask)
