"""timm's RandAugment, configured by timm's own notation: ``rand-m9-mstd0.5-inc1``.

Each of n layers takes one of 15 operations, uniformly and with repetition, and applies it with probability p at a
magnitude drawn from N(m, mstd), clamped to 0 … mmax. With inc1 every operation grows stronger with the magnitude.
Like timm, it uses Pillow, so an operation at a given magnitude gives exactly timm's pixels.

Source: timm, ``timm/data/auto_augment.py`` (``rand_augment_transform``, ``AugmentOp``), version 1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pretrain.config.schema.transforms import TimmPolicy
from pretrain.data.images.colour import Pixels

FULL_LEVEL = 10.0
TRANSLATE_SHARE = 0.45  # of the width or height, at the highest level
NUMBERS_PER_LAYER = 4  # operation, whether it is applied, magnitude, sign

Numbers = NDArray[np.float64]


class Canvas(NamedTuple):
    """Settings of geometric operations: the colour outside the image, and Pillow's filter."""

    fill: tuple[int, int, int]
    filter: Image.Resampling


class Operation(NamedTuple):
    """An operation, and how its argument depends on the magnitude.

    Attributes:
        argument: (magnitude, sign ±1) → argument.
        apply: (image, argument, canvas) → image.
    """

    argument: Callable[[float, int], float]
    apply: Callable[[Image.Image, float, Canvas], Image.Image]


@dataclass(frozen=True)
class TimmRandAugment:
    """The policy.

    Args:
        policy: as parsed from the text.
        mean: of the normalisation, in [0, 1]; the colour outside the image.
        filter: Pillow's filter for geometric operations.
    """

    policy: TimmPolicy
    mean: tuple[float, float, float]
    filter: Image.Resampling

    @property
    def num_numbers(self) -> int:
        """See ``Policy``."""
        return NUMBERS_PER_LAYER * self.policy.num_layers

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """See ``Policy``."""
        names = INCREASING if self.policy.increasing else PLAIN
        image, canvas = Image.fromarray(pixels), Canvas(fill_colour(self.mean), self.filter)
        for which, chance, spread, sign in numbers.reshape(-1, NUMBERS_PER_LAYER):
            if chance >= self.policy.prob:
                continue
            operation = OPERATIONS[names[int(which * len(names))]]
            argument = operation.argument(self.magnitude(spread), -1 if sign >= 0.5 else 1)
            image = operation.apply(image, argument, canvas)
        return np.asarray(image)

    def magnitude(self, number: float) -> float:
        """Uniform number → magnitude."""
        policy = self.policy
        drawn = policy.magnitude
        if policy.magnitude_std > 100:  # timm's notation for a uniform distribution
            drawn = number * policy.magnitude
        elif policy.magnitude_std:
            drawn = NormalDist(policy.magnitude, policy.magnitude_std).inv_cdf(min(max(number, 1e-12), 1 - 1e-12))
        return min(max(drawn, 0.0), policy.magnitude_max)


def fill_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The mean of the normalisation as a colour."""
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    return red, green, blue


def _nothing(magnitude: float, sign: int) -> float:
    return 0.0


def _signed(largest: float) -> Callable[[float, int], float]:
    return lambda magnitude, sign: sign * (magnitude / FULL_LEVEL * largest)


def _factor(magnitude: float, sign: int) -> float:
    return magnitude / FULL_LEVEL * 1.8 + 0.1


def _factor_around_one(magnitude: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (magnitude / FULL_LEVEL * 0.9))


def _bits(magnitude: float, sign: int) -> float:
    return int(magnitude / FULL_LEVEL * 4)


def _threshold(magnitude: float, sign: int) -> float:
    return min(256, int(magnitude / FULL_LEVEL * 256))


def _posterize(image: Image.Image, bits: float, canvas: Canvas) -> Image.Image:
    """Keeps the upper bits; 0 bits give black, which Pillow's own function refuses from version 13 on."""
    mask = 0xFF & ~(0xFF >> int(bits))
    return image.point([value & mask for value in range(256)] * 3)


def _solarize_add(image: Image.Image, addition: float, canvas: Canvas) -> Image.Image:
    table = [min(255, value + int(addition)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _rotate(image: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    return image.rotate(degrees, resample=canvas.filter, fillcolor=canvas.fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=canvas.filter, fillcolor=canvas.fill)


_COLOR = Operation(_factor, lambda image, factor, canvas: ImageEnhance.Color(image).enhance(factor))
_CONTRAST = Operation(_factor, lambda image, factor, canvas: ImageEnhance.Contrast(image).enhance(factor))
_BRIGHTNESS = Operation(_factor, lambda image, factor, canvas: ImageEnhance.Brightness(image).enhance(factor))
_SHARPNESS = Operation(_factor, lambda image, factor, canvas: ImageEnhance.Sharpness(image).enhance(factor))
_POSTERIZE = Operation(_bits, _posterize)
_SOLARIZE = Operation(_threshold, lambda image, threshold, canvas: ImageOps.solarize(image, int(threshold)))

OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_nothing, lambda image, argument, canvas: ImageOps.autocontrast(image)),
    "Equalize": Operation(_nothing, lambda image, argument, canvas: ImageOps.equalize(image)),
    "Invert": Operation(_nothing, lambda image, argument, canvas: ImageOps.invert(image)),
    "Rotate": Operation(_signed(30.0), _rotate),
    "Posterize": _POSTERIZE,
    "PosterizeIncreasing": _POSTERIZE._replace(argument=lambda magnitude, sign: 4 - _bits(magnitude, sign)),
    "Solarize": _SOLARIZE,
    "SolarizeIncreasing": _SOLARIZE._replace(argument=lambda magnitude, sign: 256 - _threshold(magnitude, sign)),
    "SolarizeAdd": Operation(lambda magnitude, sign: min(128, int(magnitude / FULL_LEVEL * 110)), _solarize_add),
    "Color": _COLOR,
    "ColorIncreasing": _COLOR._replace(argument=_factor_around_one),
    "Contrast": _CONTRAST,
    "ContrastIncreasing": _CONTRAST._replace(argument=_factor_around_one),
    "Brightness": _BRIGHTNESS,
    "BrightnessIncreasing": _BRIGHTNESS._replace(argument=_factor_around_one),
    "Sharpness": _SHARPNESS,
    "SharpnessIncreasing": _SHARPNESS._replace(argument=_factor_around_one),
    "ShearX": Operation(_signed(0.3), lambda image, by, canvas: _affine(image, (1, by, 0, 0, 1, 0), canvas)),
    "ShearY": Operation(_signed(0.3), lambda image, by, canvas: _affine(image, (1, 0, 0, by, 1, 0), canvas)),
    "TranslateXRel": Operation(
        _signed(TRANSLATE_SHARE),
        lambda image, by, canvas: _affine(image, (1, 0, by * image.size[0], 0, 1, 0), canvas),
    ),
    "TranslateYRel": Operation(
        _signed(TRANSLATE_SHARE),
        lambda image, by, canvas: _affine(image, (1, 0, 0, 0, 1, by * image.size[1]), canvas),
    ),
}
PLAIN = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
INCREASING = tuple(f"{name}Increasing" if f"{name}Increasing" in OPERATIONS else name for name in PLAIN)
