"""The metadata of a weights file: architecture, normalisation, classes and units.

Legend: B images · D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_serializer, model_validator
from torch import Tensor

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import family_of
from pretrain.models.variants import ViTShape, resolve

FORMAT_VERSION = 1
Task = Literal["classification", "regression", "segmentation"]


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of each of the D numbers of a regression, over the training set.

    The model predicts standardised numbers, while users want the data's own units. A constant number has the
    standard deviation 0; it is only shifted.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float]) -> TargetScale:
        """Reads the scale from a card or from the metadata of weights."""
        assert len(mean) == len(std)
        return cls(tuple(mean), tuple(value if value > 0 else 1.0 for value in std))

    def standardised(self, vectors: Tensor) -> Tensor:
        """(x − mean) / std of (B, D), fp32: the targets that a model learns."""
        mean, std = _constants(self.mean, self.std, vectors.device)
        return (vectors.float() - mean) / std

    def restored(self, outputs: Tensor) -> Tensor:
        """A model's outputs (B, D) in the units of the data, fp32."""
        mean, std = _constants(self.mean, self.std, outputs.device)
        return outputs.float() * std + mean


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cached per device: a copy from the host in every step would wait for the device."""
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


class WeightsMetadata(Strict):
    """The metadata of a weights file, kept in its header. Pairs are (height, width).

    Fields that only Vision Transformers have are None for other families, which name and kwargs describe.
    ``num_classes: 0`` means that there is no head, ``eval_transform: None`` that the evaluation transform is unknown.
    For a regression, ``target_mean`` and ``target_std`` are the units of its ``num_classes`` numbers.
    """

    version: Literal[1] = FORMAT_VERSION
    model: ModelConfig
    num_classes: Annotated[int, Field(ge=0)]
    img_size: tuple[PositiveInt, PositiveInt]
    patch: tuple[PositiveInt, PositiveInt] | None
    grid: tuple[PositiveInt, PositiveInt] | None
    num_prefix_tokens: int | None
    pool: str | None
    gelu: str | None
    layer_norm_eps: PositiveFloat | None
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    class_names: tuple[str, ...] | None = None
    class_ids: tuple[str, ...] | None = None
    eval_transform: EvalTransformConfig | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[PositiveFloat, ...] | None = None

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        scale: TargetScale | None = None,
        **more: Any,
    ) -> WeightsMetadata:
        """The metadata of weights of ``model``, trained on pixels in [0, 1] normalised by ``mean`` and ``std``.

        Args:
            model: the architecture.
            num_classes: K, the width of the head.
            mean, std: per channel.
            scale: the units of a regression.
            **more: ``class_names``, ``class_ids`` and ``eval_transform``, if known.
        """
        return cls(
            model=model,
            num_classes=num_classes,
            **asdict(family_of(model).geometry(model)),
            mean=mean,
            std=std,
            target_mean=None if scale is None else scale.mean,
            target_std=None if scale is None else scale.std,
            **more,
        )

    @property
    def task(self) -> Task:
        """The kind of output: logits of an image's classes, numbers, or logits of every pixel's classes."""
        if self.model.head == "dense":
            return "segmentation"
        return "classification" if self.target_mean is None else "regression"

    @property
    def scale(self) -> TargetScale | None:
        """The units of a regression; None for other tasks."""
        if self.target_mean is None or self.target_std is None:
            return None
        return TargetScale(self.target_mean, self.target_std)

    @field_serializer("eval_transform")
    def _without_ignored_keys(self, transform: EvalTransformConfig | None) -> dict[str, Any] | None:
        """Includes all defaults, so that the file is complete, except for keys that its ``resize`` refuses."""
        if transform is None:
            return None
        ignored = {"crop_fraction"} if transform.resize == "squash" else set()
        return transform.model_dump(exclude=ignored)

    @property
    def shape(self) -> ViTShape:
        """The geometry of a Vision Transformer's weights."""
        return resolve(self.model)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> WeightsMetadata:
        try:
            geometry = asdict(family_of(self.model).geometry(self.model))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for name, wanted in geometry.items():
            if getattr(self, name) != wanted:
                raise ValueError(f"{name} {getattr(self, name)} is not the model's {wanted}")
        if not self.num_classes and not self.model.family.has_plain_head:
            raise ValueError(f"{self.model.name} without a head is not kept: give it num_classes")
        if (self.target_mean is None) != (self.target_std is None):
            raise ValueError("target_mean and target_std go together")
        for what, given in (
            ("class names", self.class_names),
            ("class ids", self.class_ids),
            ("target means", self.target_mean),
            ("target standard deviations", self.target_std),
        ):
            if given is not None and len(given) != self.num_classes:
                raise ValueError(f"{len(given)} {what} for {self.num_classes} classes")
        return self
