"""Policies: changes of one image's pixels, as functions of a row of uniform numbers.

``POLICIES`` has them by the key that enables them, in order of application. A new policy is one file and one row here.
The colour policies (jitter, and DeiT III's 3-Augment) are on this page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pretrain.config.schema.transforms import TrainTransformConfig, parse_timm_policy
from pretrain.data.images.colour import Pixels
from pretrain.data.images.policies.big_vision import BigVisionRandAugment
from pretrain.data.images.policies.timm import TimmRandAugment

BLUR_RADII = (0.1, 2.0)
SOLARIZE_FROM = 128

Numbers = NDArray[np.float64]
Mean = tuple[float, float, float]


class Policy(Protocol):
    """Must be picklable, and must not use a random generator."""

    @property
    def num_numbers(self) -> int:
        """Number of uniform numbers per image."""
        ...

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """The changed image.

        Args:
            pixels: uint8 (H, W, 3); not written to.
            numbers: (num_numbers,) in [0, 1).
        """
        ...


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


def _big_vision(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    chosen = config.randaugment
    return BigVisionRandAugment(chosen.num_layers, chosen.magnitude) if chosen else None


def _timm(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    if config.auto_augment is None:
        return None
    cubic = config.resize_filter == "bicubic_aa"  # timm also uses the filter of the crop for geometry
    filter = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    return TimmRandAugment(parse_timm_policy(config.auto_augment), mean, filter)


def _jitter(config: TrainTransformConfig, mean: Mean) -> Policy | None:
    if not config.color_jitter and not config.color_jitter_hue:
        return None
    return ColorJitter(config.color_jitter, config.color_jitter_hue)


POLICIES: dict[str, Callable[[TrainTransformConfig, Mean], Policy | None]] = {
    "randaugment": _big_vision,
    "auto_augment": _timm,
    "three_augment": lambda config, mean: ThreeAugment() if config.three_augment else None,
    "color_jitter": _jitter,
}


def build_policies(config: TrainTransformConfig, mean: Mean) -> dict[str, Policy]:
    """The enabled policies, in order.

    Args:
        config: the training transform.
        mean: of the normalisation.
    """
    built = {name: build(config, mean) for name, build in POLICIES.items()}
    return {name: policy for name, policy in built.items() if policy is not None}
