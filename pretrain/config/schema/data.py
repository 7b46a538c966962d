"""The training set, its stream and its transforms."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.augmentation import (
    AUGREG,
    AugRegPreset,
    MixingConfig,
    Policy,
    RandAugmentConfig,
    RandomErasingConfig,
    TimmPolicyText,
)
from pretrain.config.schema.base import (
    ONE_OF,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Strict,
    UnitInterval,
    fields_of,
)
from pretrain.config.schema.source import TrainSetConfig

ResizeFilter = Literal["bilinear", "bilinear_aa", "bicubic_aa", "area"]


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


AnyTrainTransform = Annotated[InceptionConfig | InceptionTfConfig | SimpleConfig | ResmallConfig | SquashConfig, ONE_OF]


class EvalTransformConfig(Strict):
    """Transform of evaluation images."""

    resize: Literal["short_side", "resmall", "squash", "squash_crop"] = Field(
        default="short_side",
        description="short_side: keep the aspect ratio, then crop the centre (the long side is rounded down, as in "
        "torchvision, timm and Hugging Face); resmall: likewise, but the long side is rounded to the nearest and the "
        "crop position down (big_vision's resize_small and central_crop); squash: resize to the model's size; "
        "squash_crop: squash to a larger size, then crop the centre.",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.875,
        description="Model size divided by the resized short side (short_side, resmall) or sides (squash_crop), which "
        "are rounded down: 0.875 is 256 → 224, 0.9 is 248 → 224.",
    )
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        if self.resize != "squash":
            return {}
        return {
            "crop_fraction": "belongs to resize: short_side, resmall or squash_crop; with squash it would be ignored"
        }

    def before_crop(self, side: int) -> int:
        """Length to which a side is resized before the crop to ``side``, rounded down as in timm and DeiT."""
        return math.floor(side / self.crop_fraction)


class DataConfig(TrainSetConfig):
    """The training set and how it is streamed."""

    lanes: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Number L of equal parts of an epoch; it decides the order of the samples. "
        "auto: the largest power of two ≤ 512 with an even global_batch_size / L, ≥ 8 where the batch allows.",
    )
    shuffle_window: PositiveInt = Field(
        default=8192, description="Shuffle window: consecutive positions of a lane that are shuffled together."
    )
    repeated_augmentation: PositiveInt = Field(
        default=1,
        description="Repeated augmentation: k copies of an image per global batch, augmented independently and in "
        "different lanes; an epoch still has num_samples draws, of num_samples / k images (DeiT: 3).",
    )
    augreg: AugRegPreset | None = Field(
        default=None,
        description="AugReg's augmentation strength: sets train_transform.randaugment and mixing (mixup, per batch, "
        "keep_larger).",
    )
    train_transform: AnyTrainTransform = Field(
        default_factory=InceptionConfig,
        description="Transform of training images. Random numbers are functions of (seed, epoch, sample).",
    )
    mixing: MixingConfig = Field(default_factory=MixingConfig)
    eval_transform: EvalTransformConfig = Field(default_factory=EvalTransformConfig)
    mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="Subtracted from pixels in [0, 1].")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 0.5, 0.5), description="The pixels are divided by it after that."
    )
    max_bad_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="The run stops if more than this fraction of the samples cannot be read or decoded."
    )

    @model_validator(mode="after")
    def _preset_alone(self) -> DataConfig:
        if self.augreg is None:
            return self
        transform = self.train_transform
        policies = [name for name in ("randaugment", "auto_augment", "three_augment") if getattr(transform, name)]
        if policies:
            raise ValueError(f"augreg sets train_transform.randaugment; remove train_transform.{policies[0]} or augreg")
        if self.mixing.mixup or self.mixing.cutmix:
            raise ValueError("augreg sets mixing; remove mixing or augreg")
        return self

    @property
    def augmentation(self) -> TrainTransformConfig:
        """``train_transform`` with the policies that ``augreg`` adds."""
        preset = AUGREG.get(self.augreg or "none")
        if preset is None or not preset.num_layers:
            return self.train_transform
        policy = RandAugmentConfig(num_layers=preset.num_layers, magnitude=preset.magnitude)
        return self.train_transform.model_copy(update={"randaugment": policy})

    @property
    def effective_mixing(self) -> MixingConfig:
        """``mixing``, or the settings that ``augreg`` implies."""
        mixup = AUGREG[self.augreg].mixup if self.augreg else 0.0
        return MixingConfig(mixup=mixup, keep_larger=True) if mixup else self.mixing
