"""The training set, its stream and its transforms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Probability, Strict
from pretrain.config.schema.source import TrainSetConfig

ResizeFilter = Literal["bilinear", "bilinear_aa", "bicubic_aa", "area"]


class TrainTransformConfig(Strict):
    """How a training image is made from its bytes. Random numbers are functions of (seed, epoch, sample)."""

    crop: Literal["inception", "resize"] = Field(
        default="inception",
        description="inception: a random area and ratio, resized; resize: the whole image, squashed.",
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="Smallest share of the area of a crop."
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 4 / 3), description="Range of the crop's width over its height."
    )
    hflip: Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> TrainTransformConfig:
        unused = sorted({"min_area", "ratio"} & self.model_fields_set)
        if self.crop == "resize" and unused:
            raise ValueError(f"{', '.join(unused)} belong to crop: inception; with crop: resize they would be ignored")
        return self


class EvalTransformConfig(Strict):
    """How an evaluation image is made from its bytes."""

    resize: Literal["short_side", "squash"] = Field(
        default="short_side",
        description="short_side: keep the aspect, then crop the centre; squash: to the size itself.",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.875, description="short_side only: model size over the resized short side (0.875 is 256 → 224)."
    )
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> EvalTransformConfig:
        if self.resize == "squash" and "crop_fraction" in self.model_fields_set:
            raise ValueError("crop_fraction belongs to resize: short_side; with squash it would be ignored")
        return self


class DataConfig(TrainSetConfig):
    """The training set and how it is streamed."""

    lanes: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Equal parts L into which an epoch is cut; part of the experiment, since it decides the order. "
        "auto: the largest power of two ≤ 512 with an even global_batch_size / L, ≥ 8 where the batch allows.",
    )
    shuffle_window: PositiveInt = Field(
        default=8192, description="Consecutive positions of a lane that are shuffled among each other."
    )
    train_transform: TrainTransformConfig = Field(default_factory=TrainTransformConfig)
    eval_transform: EvalTransformConfig = Field(default_factory=EvalTransformConfig)
    mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="Subtracted from pixels in [0, 1].")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 0.5, 0.5), description="Divides after that."
    )
    max_bad_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="The run stops when more than this share of the samples could not be read or decoded."
    )
