"""Pictures that the golden traces are made of: functions of whole numbers, so that every machine has the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FLAT = {"flat": 77, "black": 0, "white": 255}


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Ramps and stripes, uint8 (height, width, 3); the channels use different ranges, none of them all values."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 3 + y, y * 5 + x // 2, (x * y) // 7 + x], axis=-1)
    noise = (x * 7 + y * 13 + (x * x + 3 * y * y) // 5)[:, :, None] % np.array([11, 17, 7])
    return ((ramps + noise) % np.array([201, 240, 131]) + np.array([30, 8, 97])).astype(np.uint8)


def flat(name: str) -> NDArray[np.uint8]:
    """One value everywhere, uint8 (12, 9, 3)."""
    return np.full((12, 9, 3), FLAT[name], dtype=np.uint8)
