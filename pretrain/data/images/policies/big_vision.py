"""big_vision's RandAugment: each layer applies one of 16 operations, chosen uniformly, always, at one magnitude.

Levels are not clamped at 10, so 15 and 20 extrapolate: 20 rotates by 60°. Pixels from outside the image are grey (128),
and geometric operations take the nearest pixel. The pixels equal those of the reference, including the effects of its
8-bit arithmetic on three operations: posterising to 0 bits keeps the highest one, solarising at 256 or 512 inverts the
image, and contrast blends with a grey that depends on the size of the image and not on its pixels.

Legend: H, W pixels.
Source: RandAugment (1909.13719) with the operations, levels and constants of google-research/big_vision,
pp/archive/autoaugment.py (``distort_image_with_randaugment``), which is based on AutoAugment's TensorFlow code. Its
pixels are stored in tests/golden/traces/tf_randaugment_*.npz.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pretrain.data.images.colour import Pixels

MAX_LEVEL = 10.0  # end of the published ranges; levels may be larger
CUTOUT_PIXELS, TRANSLATE_PIXELS = 40, 100
GREY = (128, 128, 128)
NUMBERS_PER_LAYER = 4  # operation, sign, and the centre of a cutout (down, across)

Numbers = NDArray[np.float64]

_GREY_WEIGHTS = np.array([[0.2989, 0.5870, 0.1140]], dtype=np.float32)
_ROUNDING = np.float32(255.5 / 255)  # TensorFlow's way back from [0, 1] to 8 bits, which then cuts off
_AROUND, _OWN = np.float32(1) / np.float32(13), np.float32(5) / np.float32(13)  # a smoothed pixel's weights
_VALUES = np.arange(256)
_Row = tuple[float, float, float]


class Operation(NamedTuple):
    """An operation, and how its argument depends on the level.

    Attributes:
        argument: level → argument.
        apply: (pixels, argument, centre of a cutout as shares of height and width) → pixels.
        signed: the argument is negated for half of the images.
    """

    argument: Callable[[float], float]
    apply: Callable[[Pixels, float, Numbers], Pixels]
    signed: bool = False


@dataclass(frozen=True)
class BigVisionRandAugment:
    """RandAugment(num_layers, magnitude)."""

    num_layers: int
    magnitude: float

    @property
    def num_numbers(self) -> int:
        """See ``Policy``."""
        return NUMBERS_PER_LAYER * self.num_layers

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """See ``Policy``."""
        for which, sign, *centre in numbers.reshape(self.num_layers, NUMBERS_PER_LAYER):
            operation = _IN_ORDER[int(which * len(_IN_ORDER))]
            argument = operation.argument(self.magnitude)
            argument = -argument if operation.signed and sign >= 0.5 else argument
            pixels = operation.apply(pixels, argument, np.array(centre))
        return pixels


def _constant(level: float) -> float:
    return 0.0


def _scaled(largest: float) -> Callable[[float], float]:
    return lambda level: level / MAX_LEVEL * largest


def _whole(largest: int) -> Callable[[float], float]:
    return lambda level: int(level / MAX_LEVEL * largest)


def _factor(level: float) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


def _autocontrast(pixels: Pixels, argument: float, centre: Numbers) -> Pixels:
    table = np.empty((256, 3), dtype=np.uint8)
    for channel in range(3):
        low, high = (np.float32(value) for value in cv2.minMaxLoc(pixels[:, :, channel])[:2])
        scale = np.float32(255) / (high - low) if high > low else np.float32(1)
        offset = -low * scale if high > low else np.float32(0)
        table[:, channel] = _to_bytes(_VALUES.astype(np.float32) * scale + offset)
    return cv2.LUT(pixels, table[None])  # pyright: ignore[reportReturnType]


def _equalize(pixels: Pixels, argument: float, centre: Numbers) -> Pixels:
    return np.asarray(ImageOps.equalize(Image.fromarray(pixels)))


def _invert(pixels: Pixels, argument: float, centre: Numbers) -> Pixels:
    return np.subtract(255, pixels, dtype=np.uint8)


def _posterize(pixels: Pixels, bits: float, centre: Numbers) -> Pixels:
    """Sets the lowest 8 − bits bits to 0; like TensorFlow, wraps the shift to 8 bits and limits it to 7."""
    return pixels & np.uint8(0xFF << min(7, (8 - int(bits)) % 256) & 0xFF)


def _solarize(pixels: Pixels, threshold: float, centre: Numbers) -> Pixels:
    """Inverts pixels at or above the threshold, which wraps to 8 bits: 256 becomes 0 and inverts everything."""
    return _mapped(pixels, np.where(int(threshold) % 256 > _VALUES, _VALUES, 255 - _VALUES))


def _solarize_add(pixels: Pixels, addition: float, centre: Numbers) -> Pixels:
    return _mapped(pixels, np.where(_VALUES < 128, np.clip(_VALUES + addition, 0, 255), _VALUES))


def _color(pixels: Pixels, factor: float, centre: Numbers) -> Pixels:
    return _blend(cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB), pixels, factor)  # pyright: ignore


def _contrast(pixels: Pixels, factor: float, centre: Numbers) -> Pixels:
    """Blends with a constant grey: the reference divides the number of pixels, not their sum, by 256."""
    grey = min(255, pixels.shape[0] * pixels.shape[1] // 256)
    return _mapped(pixels, grey + np.float32(factor) * (_VALUES.astype(np.float32) - grey))


def _brightness(pixels: Pixels, factor: float, centre: Numbers) -> Pixels:
    return _mapped(pixels, np.float32(factor) * _VALUES.astype(np.float32))


def _sharpness(pixels: Pixels, factor: float, centre: Numbers) -> Pixels:
    smooth = pixels.copy()  # border pixels have no full neighbourhood and are not changed
    height, width = (max(0, side - 2) for side in pixels.shape[:2])
    around, own = pixels * _AROUND, pixels * _OWN
    total = np.zeros((height, width, 3), dtype=np.float32)
    for down, across in np.ndindex(3, 3):  # in TensorFlow's order: a sum that should be an integer may fall below
        weighted = own if (down, across) == (1, 1) else around
        total += weighted[down : down + height, across : across + width]
    smooth[1:-1, 1:-1] = _to_bytes(total)
    return _blend(smooth, pixels, factor)


def _rotate(pixels: Pixels, degrees: float, centre: Numbers) -> Pixels:
    down, across = (np.float32(side - 1) for side in pixels.shape[:2])
    angle = np.float32(degrees) * np.float32(math.pi / 180)
    cosine, sine = np.cos(angle), np.sin(angle)
    right = (across - (cosine * across - sine * down)) / np.float32(2)
    below = (down - (sine * across + cosine * down)) / np.float32(2)
    return _moved(pixels, (cosine, -sine, right), (sine, cosine, below))


def _cutout(pixels: Pixels, reach: float, centre: Numbers) -> Pixels:
    row, column = (int(share * size) for share, size in zip(centre, pixels.shape[:2], strict=True))
    cut, reach = pixels.copy(), int(reach)
    cut[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = GREY
    return cut


def _moved(pixels: Pixels, across: _Row, down: _Row) -> Pixels:
    """Each pixel (x, y) of the result is the nearest one to (across · (x, y, 1), down · (x, y, 1)).

    Uses 32-bit floats, and rounds half-way positions away from 0, like TensorFlow's kernel.
    """
    height, width = pixels.shape[:2]
    x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    nearest = np.empty((height, width, 2), dtype=np.int16)
    for index, row in enumerate((across, down)):
        by_x, by_y, offset = map(np.float32, row)
        place = (by_x * x + by_y * y + offset).astype(np.float64)  # exact from here on
        nearest[:, :, index] = np.clip(np.trunc(place + np.copysign(0.5, place)), -1, np.iinfo(np.int16).max)
    unused = np.empty(0, dtype=np.int16)  # the second map holds fractions of a pixel
    return cv2.remap(  # pyright: ignore[reportReturnType]
        pixels, nearest, unused, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=GREY
    )


def _mapped(pixels: Pixels, table: np.ndarray) -> Pixels:
    return cv2.LUT(pixels, _to_bytes(table))  # pyright: ignore[reportReturnType]


def _blend(degenerate: Pixels, pixels: Pixels, factor: float) -> Pixels:
    """degenerate + factor · (pixels − degenerate), truncated to integers in 0 … 255, as in Pillow and TensorFlow."""
    return np.asarray(Image.blend(Image.fromarray(degenerate), Image.fromarray(pixels), factor))


def _grey(pixels: Pixels) -> Pixels:
    weighted = cv2.transform(pixels.astype(np.float32), _GREY_WEIGHTS)
    return _to_bytes(np.asarray(weighted) * _ROUNDING)


def _to_bytes(values: np.ndarray) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_constant, _autocontrast),
    "Equalize": Operation(_constant, _equalize),
    "Invert": Operation(_constant, _invert),
    "Rotate": Operation(_scaled(30.0), _rotate, signed=True),
    "Posterize": Operation(_whole(4), _posterize),
    "Solarize": Operation(_whole(256), _solarize),
    "Color": Operation(_factor, _color),
    "Contrast": Operation(_factor, _contrast),
    "Brightness": Operation(_factor, _brightness),
    "Sharpness": Operation(_factor, _sharpness),
    "ShearX": Operation(_scaled(0.3), lambda p, by, c: _moved(p, (1, by, 0), (0, 1, 0)), signed=True),
    "ShearY": Operation(_scaled(0.3), lambda p, by, c: _moved(p, (1, 0, 0), (by, 1, 0)), signed=True),
    "TranslateX": Operation(_scaled(TRANSLATE_PIXELS), lambda p, by, c: _moved(p, (1, 0, by), (0, 1, 0)), signed=True),
    "TranslateY": Operation(_scaled(TRANSLATE_PIXELS), lambda p, by, c: _moved(p, (1, 0, 0), (0, 1, by)), signed=True),
    "Cutout": Operation(_whole(CUTOUT_PIXELS), _cutout),
    "SolarizeAdd": Operation(_whole(110), _solarize_add),
}
SIGNED = {name for name, operation in OPERATIONS.items() if operation.signed}
_IN_ORDER = tuple(OPERATIONS.values())
