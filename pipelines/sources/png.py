"""Pixels → PNG bytes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode_grey(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless grey PNG of uint8 (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
