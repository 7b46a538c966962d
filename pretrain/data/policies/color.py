"""Colour: the jitter, and DeiT III's 3-Augment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pretrain.data.policies.protocol import Numbers, Pixels

BLUR_RADII = (0.1, 2.0)
SOLARIZE_FROM = 128


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation, each by a factor uniform in [max(0, 1 − s), 1 + s], in random order.

    Source: torchvision's ColorJitter(s, s, s), whose pixels these are.
    """

    strength: float

    num_numbers = 6  # a factor for each, and their order

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """See ``Policy``."""
        lowest = max(0.0, 1.0 - self.strength)
        factors = lowest + (1.0 + self.strength - lowest) * numbers[:3]
        image = Image.fromarray(pixels)
        for which in numbers[3:].argsort(kind="stable"):
            image = _JITTERED[which](image).enhance(float(factors[which]))
        return np.asarray(image)


_JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class ThreeAugment:
    """Grey, solarised or blurred (radius uniform in 0.1 … 2 pixels), one of the three for every image.

    Source: DeiT III (2204.07118), section 3.2, and its code, ``augment.py``.
    """

    num_numbers = 2  # which one, and the radius

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """See ``Policy``."""
        image, which = Image.fromarray(pixels), int(numbers[0] * 3)
        if which == 0:
            changed = ImageOps.grayscale(image).convert("RGB")
        elif which == 1:
            changed = ImageOps.solarize(image, SOLARIZE_FROM)
        else:
            low, high = BLUR_RADII
            changed = image.filter(ImageFilter.GaussianBlur(low + (high - low) * float(numbers[1])))
        return np.asarray(changed)
