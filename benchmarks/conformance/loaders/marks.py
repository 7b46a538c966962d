"""Images that show their own number, so that a sample with another sample's pixels is noticed.

A 32 × 32 JPEG has 16 squares of 8 pixels, black or white: the bits of the number.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, SQUARE = 32, 8
BITS = (SIDE // SQUARE) ** 2
NUM_CLASSES = 1 << BITS  # a sample's class is its number
DARK, BRIGHT = 32, 224


def drawn(number: int) -> bytes:
    """The JPEG of a number below 2^16."""
    bits = (number >> np.arange(BITS)) & 1
    grey = np.where(bits, BRIGHT, DARK).astype(np.uint8).reshape(SIDE // SQUARE, SIDE // SQUARE)
    pixels = np.kron(grey, np.ones((SQUARE, SQUARE), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    """JPEG → pixels, uint8 (32, 32, 3): the decoding step where a loader leaves it to its user."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """A Pillow image, decoded by the loader → pixels, uint8 (32, 32, 3)."""
    return np.asarray(image.convert("RGB"))


def numbers(images: Any) -> list[int]:
    """The number that each image shows; -1 if it is not one of ours.

    Args:
        images: uint8 (b, 32, 32, 3).
    """
    squares = np.asarray(images, dtype=np.float64).reshape(-1, SIDE // SQUARE, SQUARE, SIDE // SQUARE, SQUARE, 3)
    levels = squares.mean(axis=(2, 4, 5)).reshape(-1, BITS)
    clear = (np.minimum(np.abs(levels - DARK), np.abs(levels - BRIGHT)) < 32).all(axis=1)
    found = ((levels > 128) * (1 << np.arange(BITS))).sum(axis=1)
    return np.where(clear, found, -1).tolist()
