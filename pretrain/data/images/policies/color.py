"""Colour policies: jitter, and DeiT III's 3-Augment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pretrain.data.images.policies.protocol import Numbers, Pixels

BLUR_RADII = (0.1, 2.0)
SOLARIZE_FROM = 128


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation, each by a factor uniform in [max(0, 1 − s), 1 + s], in random order.

    If h is not 0, the hue is also rotated, by a fraction of the circle uniform in [−h, h].

    Source: torchvision's ColorJitter(s, s, s, h); the pixels are the same.

    Args:
        strength: s; 0: these three are skipped.
        hue: h, 0 … 0.5; 0: the hue is not changed, and needs no random numbers.
    """

    strength: float
    hue: float = 0.0

    @property
    def num_numbers(self) -> int:
        """A factor and a place in the order for each; see ``Policy``."""
        return 8 if self.hue else 6

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """See ``Policy``."""
        lowest = max(0.0, 1.0 - self.strength)
        factors = lowest + (1.0 + self.strength - lowest) * numbers[:3]
        image = Image.fromarray(pixels)
        places = np.concatenate([numbers[3:6], numbers[7:]])  # the hue's numbers are last
        for which in places.argsort(kind="stable"):
            if which == len(_JITTERED):
                image = turn_hue(image, self.hue * float(2 * numbers[6] - 1))
            elif self.strength:
                image = _JITTERED[which](image).enhance(float(factors[which]))
        return np.asarray(image)


_JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def turn_hue(image: Image.Image, share: float) -> Image.Image:
    """Rotates the hue by a fraction of the circle, −0.5 … 0.5, truncated to one of 255 steps.

    Source: torchvision's adjust_hue of Pillow images.
    """
    hue, saturation, value = image.convert("HSV").split()
    steps = np.int32(share * 255).astype(np.uint8)  # negative steps wrap around, like the sum
    turned = Image.fromarray(np.asarray(hue) + steps)
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


@dataclass(frozen=True)
class ThreeAugment:
    """Grey, solarised or blurred (radius uniform in 0.1 … 2 pixels), one of the three for every image.

    Source: DeiT III (2204.07118), section 3.2, and its code, ``augment.py``.
    """

    num_numbers = 2  # the choice, and the radius

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
