"""Training augmentation beyond crop and flip: per image in the data processes, per pair (mixing) on the device.

Every random number is a function of the seed and the image's position in the stream, so the result does not depend on
the number of ranks, data processes or micro-batches.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from pretrain.config.schema.base import NonNegativeFloat, PositiveInt, Strict, UnitInterval

AugRegPreset = Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]


class AugReg(NamedTuple):
    """RandAugment's layers and magnitude, and mixup's p."""

    num_layers: int
    magnitude: float
    mixup: float


# Source: AugReg (2106.10270), from google-research/big_vision, configs/vit_i1k.py and vit_i21k.py.
AUGREG: dict[str, AugReg] = {
    "none": AugReg(0, 0, 0.0),
    "light1": AugReg(2, 0, 0.0),  # magnitude 0 still has an effect: it may invert or darken an image
    "light2": AugReg(2, 10, 0.2),
    "medium1": AugReg(2, 15, 0.2),
    "medium2": AugReg(2, 15, 0.5),
    "strong1": AugReg(2, 20, 0.5),
    "strong2": AugReg(2, 20, 0.8),
}


class RandAugmentConfig(Strict):
    """big_vision's RandAugment: layers of one of 16 operations each, always applied (RandAugment, 1909.13719)."""

    num_layers: PositiveInt = Field(default=2, description="Operations per image, one after the other.")
    magnitude: NonNegativeFloat = Field(
        default=10.0, description="Strength of every operation; values above 10 extrapolate."
    )


class Policy(NamedTuple):
    """Marks a key of ``train_transform`` that switches a policy on: a change of the pixels after crop and flip.

    Attributes:
        moves_pixels: the policy moves image content, so a mask would no longer fit its image. Such a policy is refused
            for data sets with masks; the others only change pixel values.
    """

    moves_pixels: bool


class TimmPolicy(NamedTuple):
    """The values in timm's text: see ``parse_timm_policy``."""

    magnitude: float
    num_layers: int
    prob: float
    magnitude_std: float
    magnitude_max: float
    increasing: bool


_TIMM_PART = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)")
_TIMM_KEYS = "m9 (magnitude), n2 (layers), p0.5 (probability), mstd0.5 (spread of the magnitude), mmax10, inc1"


def parse_timm_policy(text: str) -> TimmPolicy:
    """Reads timm's text for RandAugment, such as ``rand-m9-mstd0.5-inc1``, with timm's defaults.

    Raises:
        ValueError: a part is unknown; the message lists the known ones.
    """
    name, *parts = text.split("-")
    if name != "rand":
        raise ValueError(f"{text!r}: timm's RandAugment starts with rand-; parts are {_TIMM_KEYS}")
    values: dict[str, float] = {"m": 10, "n": 2, "p": 0.5, "mstd": 0, "mmax": 10, "inc": 0}
    for part in parts:
        match = _TIMM_PART.fullmatch(part)
        if match is None or (match[1] == "inc" and match[2] not in "01") or (match[1] == "n" and "." in match[2]):
            raise ValueError(f"{text!r}: {part!r} is not a known part of timm's RandAugment; use {_TIMM_KEYS}")
        values[match[1]] = float(match[2])
    if not 0 <= values["p"] <= 1 or values["n"] < 1:
        raise ValueError(f"{text!r}: p is a probability, n at least 1")
    return TimmPolicy(
        values["m"], int(values["n"]), values["p"], values["mstd"], values["mmax"] or 10.0, bool(values["inc"])
    )


def _checked_timm_policy(text: str) -> str:
    parse_timm_policy(text)
    return text


TimmPolicyText = Annotated[str, AfterValidator(_checked_timm_policy)]


class RandomErasingConfig(Strict):
    """Random erasing: rectangles of noise, added between normalisation and mixing (1708.04896; as in timm)."""

    prob: UnitInterval = Field(default=0.25, description="Fraction of the images that get rectangles.")
    mode: Literal["pixel", "rand", "const"] = Field(
        default="pixel",
        description="Gaussian noise per pixel, one Gaussian colour per rectangle, or zero (the mean).",
    )
    count: PositiveInt = Field(default=1, description="Maximum number of rectangles per image; they share the area.")
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.02, description="Minimum fraction of the image area."
    )
    max_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1 / 3, description="Maximum fraction of the image area."
    )
    min_aspect: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.3, description="Aspect ratio: log-uniform between this and its inverse."
    )

    @model_validator(mode="after")
    def _in_order(self) -> RandomErasingConfig:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area:g} is larger than max_area {self.max_area:g}")
        return self


class MixingConfig(Strict):
    """Mixup and CutMix of the images 2i and 2i + 1 of a lane, and of their labels."""

    mixup: NonNegativeFloat = Field(
        default=0.0, description="λ ~ Beta(mixup, mixup) blends the two images (mixup, 1710.09412); 0: never."
    )
    cutmix: NonNegativeFloat = Field(
        default=0.0,
        description="λ ~ Beta(cutmix, cutmix): a box of 1 − λ of the area is exchanged (CutMix, 1905.04899). λ is "
        "corrected to the clipped box's area; 0: never.",
    )
    prob: UnitInterval = Field(default=1.0, description="Probability of mixing.")
    switch_prob: UnitInterval = Field(default=0.5, description="Probability of CutMix if both are on.")
    per: Literal["batch", "pair"] = Field(
        default="batch", description="Draw the choice, λ and box once per global batch or per pair of images."
    )
    keep_larger: bool = Field(
        default=False,
        description="Use max(λ, 1 − λ) in mixup, so that each image keeps the larger share (big_vision).",
    )

    @property
    def active(self) -> bool:
        """Whether mixing is on."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        ignored = {}
        if not (self.mixup and self.cutmix):
            ignored["switch_prob"] = "chooses between mixup and cutmix; with one of them it would be ignored"
        if not (self.mixup or self.cutmix):
            ignored |= dict.fromkeys(("prob", "per"), "belongs to mixup and cutmix; with neither it would be ignored")
        return ignored

    @model_validator(mode="after")
    def _keeps_what_is_mixed(self) -> MixingConfig:
        if self.keep_larger and not self.mixup:
            raise ValueError("keep_larger belongs to mixup; without mixup it would be ignored")
        return self
