"""Transforms of images: the crop of training images and the policies that change pixels, and the evaluation transform.

Every random number is a function of the seed and the image's position in the stream, so the result does not depend on
the number of ranks, data processes or micro-batches.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, field_validator, model_validator

from pretrain.config.schema.base import (
    ONE_OF,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Strict,
    UnitInterval,
    fields_of,
)

ResizeFilter = Literal["bilinear", "bilinear_aa", "bicubic_aa", "area"]


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


class TrainTransformConfig(Strict):
    """Transform of training images. Random numbers are functions of (seed, epoch, sample)."""

    chosen_by = "crop"
    first_keys = ("crop", "short_side")

    crop: str
    short_side: PositiveInt | None = Field(default=None, description="null only.", json_schema_extra={"const": None})
    hflip: UnitInterval = Field(default=0.5, description="Probability of a horizontal flip.")
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")
    randaugment: Annotated[RandAugmentConfig | None, Policy(moves_pixels=True)] = Field(
        default=None, description="big_vision's RandAugment, after the flip; null: none."
    )
    auto_augment: Annotated[TimmPolicyText | None, Policy(moves_pixels=True)] = Field(
        default=None,
        description="timm's RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1 (operations and levels differ "
        "from randaugment); null: none.",
    )
    three_augment: Annotated[bool, Policy(moves_pixels=False)] = Field(
        default=False, description="3-Augment: each image is converted to grey, solarised or blurred (DeiT III)."
    )
    color_jitter: Annotated[NonNegativeFloat, Policy(moves_pixels=False)] = Field(
        default=0.0,
        description="Scale brightness, contrast and saturation by factors within 1 ± this, in random order, after the "
        "operations above. Unlike in timm, it also applies together with auto_augment.",
    )
    color_jitter_hue: Annotated[float, Field(ge=0, le=0.5), Policy(moves_pixels=False)] = Field(
        default=0.0,
        description="The colour jitter's fourth operation: shift the hue by a fraction of the circle within ± this "
        "(torchvision's hue); the only operation if color_jitter is 0.",
    )
    random_erasing: Annotated[RandomErasingConfig | None, Policy(moves_pixels=True)] = Field(
        default=None, description="Random erasing in the normalised image; null: none."
    )

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Patches in the padded sequence of an image, one of them for each batch; none: images of a given size."""
        return ()

    @classmethod
    def policies(cls) -> dict[str, Policy]:
        """The keys that switch a policy on, each with its declaration."""
        marked = {
            key: [mark for mark in info.metadata if isinstance(mark, Policy)] for key, info in fields_of(cls).items()
        }
        return {key: marks[0] for key, marks in marked.items() if marks}

    @property
    def moving_pixels(self) -> list[str]:
        """The keys of the active policies that move image content."""
        return [key for key, policy in self.policies().items() if policy.moves_pixels and getattr(self, key)]

    def of_masks(self) -> TrainTransformConfig:
        """The same crop and flip for masks: nearest-neighbour interpolation, no policies."""
        off = {key: type(self).model_fields[key].default for key in self.policies()}
        return self.model_copy(update={"resize_filter": "nearest", **off})

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> TrainTransformConfig:
        if self.short_side is not None and not isinstance(self, ResmallConfig):
            raise ValueError(f"short_side belongs to crop: resmall; with {self.crop} it would be ignored")
        chosen = [name for name in ("randaugment", "auto_augment", "three_augment") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are two policies for one place; choose one")
        return self


class InceptionConfig(TrainTransformConfig):
    """A crop of random area and aspect ratio."""

    crop: Literal["inception"] = Field(
        default="inception",
        description="Crop of random area and aspect ratio, resized (torchvision's RandomResizedCrop).",
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="Minimum fraction of the area in a crop."
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 4 / 3), description="Range of the crop's width over its height."
    )


class InceptionTfConfig(TrainTransformConfig):
    """A crop of random height and aspect ratio."""

    crop: Literal["inception_tf"] = Field(
        default="inception_tf",
        description="Crop of random height and ratio, resized (TensorFlow's distorted bounding box; Google's recipes).",
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="Minimum fraction of the area in a crop."
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 1.33), description="Range of the crop's width over its height (TensorFlow's default)."
    )


class SimpleConfig(TrainTransformConfig):
    """A random square crop after resizing the short side to the model's size."""

    crop: Literal["simple"] = Field(
        default="simple",
        description="Resize the short side to the model's size, reflect 4 pixels at each edge, then crop a random "
        "square of the model's size (DeiT III's simple random crop).",
    )


class ResmallConfig(TrainTransformConfig):
    """A random square crop of a resized image."""

    crop: Literal["resmall"] = Field(
        default="resmall",
        description="Resize the short side to short_side, then crop a random square (big_vision's resmall_crop).",
    )
    short_side: PositiveInt | None = Field(
        default=None,
        description="Length of the short side before the crop, in pixels (448 for a 384 px model). Must be set.",
    )

    @model_validator(mode="after")
    def _has_a_short_side(self) -> ResmallConfig:
        if self.short_side is None:
            raise ValueError("crop: resmall needs short_side, the pixels of the short side before the crop")
        return self


class SquashConfig(TrainTransformConfig):
    """The complete image, without a crop."""

    crop: Literal["resize"] = Field(
        default="resize", description="No crop: squash the complete image to the model's size."
    )


class NativeConfig(TrainTransformConfig):
    """The image at its own aspect ratio, as a padded sequence of patches."""

    crop: Literal["native"] = Field(
        default="native",
        description="Keep the aspect ratio: resize to the largest size with at most max_tokens patches, and pad the "
        "sequence of patches to max_tokens (NaViT, NaFlex).",
    )
    max_tokens: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        description="Largest number of patches of an image, and length of its sequence; of a list ([128, 256, 576]) "
        "one for each batch, drawn by seed and step."
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Minimum fraction of the area in a random crop of the image's aspect ratio; 1: the complete image.",
    )

    @field_validator("max_tokens")
    @classmethod
    def _each_once(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError(f"max_tokens: {list(value)}; list each length once")
        return value

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """See ``TrainTransformConfig``."""
        return self.max_tokens if isinstance(self.max_tokens, tuple) else (self.max_tokens,)


AnyTrainTransform = Annotated[
    InceptionConfig | InceptionTfConfig | SimpleConfig | ResmallConfig | SquashConfig | NativeConfig, ONE_OF
]


class EvalTransformConfig(Strict):
    """Transform of evaluation images."""

    resize: Literal["short_side", "resmall", "squash", "squash_crop", "native"] = Field(
        default="short_side",
        description="short_side: keep the aspect ratio, then crop the centre (the long side is rounded down, as in "
        "torchvision, timm and Hugging Face); resmall: likewise, but the long side is rounded to the nearest and the "
        "crop position down (big_vision's resize_small and central_crop); squash: resize to the model's size; "
        "squash_crop: squash to a larger size, then crop the centre; native: the complete image at its own aspect "
        "ratio, as for train_transform.crop: native.",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.875,
        description="Model size divided by the resized short side (short_side, resmall) or sides (squash_crop), which "
        "are rounded down: 0.875 is 256 → 224, 0.9 is 248 → 224.",
    )
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    max_tokens: PositiveInt | None = Field(
        default=None, description="native only: largest number of patches of an image, and length of its sequence."
    )

    @property
    def is_native(self) -> bool:
        """Whether images keep their aspect ratio and are padded sequences of patches."""
        return self.resize == "native"

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        ignored = {}
        if not self.is_native:
            ignored["max_tokens"] = f"belongs to resize: native; with {self.resize} it would be ignored"
        if self.resize in ("squash", "native"):
            reason = f"belongs to resize: short_side, resmall or squash_crop; with {self.resize} it would be ignored"
            ignored["crop_fraction"] = reason
        return ignored

    @model_validator(mode="after")
    def _has_a_length(self) -> EvalTransformConfig:
        if self.is_native and self.max_tokens is None:
            raise ValueError("resize: native needs max_tokens, the largest number of patches of an image")
        return self

    def before_crop(self, side: int) -> int:
        """Length to which a side is resized before the crop to ``side``, rounded down as in timm and DeiT."""
        return math.floor(side / self.crop_fraction)
