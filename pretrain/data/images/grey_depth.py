"""Grey samples of more than 8 bits → 8 bits, by the range that the file's type states or that holds its values.

A type of 16 bits states its range: the upper 8 bits are kept. Whole numbers of 32 bits and floats state none, so the
smallest of the usual ranges that holds all of an image's values is taken. Numbers that fit none are refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.data.workers.faults import BadSample

WHOLE_BITS = (8, 16, 24, 31)  # whole numbers from 0 to 2 ** bits − 1
FLOAT_TOPS = (1.0, 255.0, 65535.0)
_SLACK = 1 / 512  # of the range: half a level, by which resampled floats overshoot

Pixels = NDArray[np.uint8]


def grey_levels(values: NDArray[np.generic], bits: int | None) -> tuple[Pixels, str]:
    """Levels 0 … 255, uint8 (h, w), and the range that was read, for the card.

    Args:
        values: (h, w), whole numbers or floats; NaN counts as 0.
        bits: the range that the file's type states, for whole numbers; None: it states none.

    Raises:
        BadSample: negative numbers, infinite ones, or larger ones than in any usual range.
    """
    if values.dtype.kind == "f":
        return _of_floats(values)
    lowest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    wanted = bits or next((bits for bits in WHOLE_BITS if largest < 1 << bits), None)
    if lowest < 0 or wanted is None:
        raise _refused("whole numbers", lowest, largest, "0 to 2147483647")
    return np.right_shift(values, wanted - 8).astype(np.uint8), f"grey of {wanted} bits"  # type: ignore[call-overload]


def _of_floats(values: NDArray[np.generic]) -> tuple[Pixels, str]:
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    lowest, largest = float(numbers.min(initial=0)), float(numbers.max(initial=0))
    top = next((top for top in FLOAT_TOPS if largest <= top * (1 + _SLACK)), None)
    if top is None or lowest < -top * _SLACK:
        raise _refused("floats", lowest, largest, "0 to 1, 0 to 255 or 0 to 65535")
    np.multiply(numbers, 255 / top, out=numbers)
    return np.rint(numbers, out=numbers).clip(0, 255).astype(np.uint8), f"float grey from 0 to {top:.0f}"


def _refused(what: str, lowest: float, largest: float, allowed: str) -> BadSample:
    return BadSample("decode", f"grey {what} from {lowest:g} to {largest:g}; read are {allowed}: convert it to 8 bits")
