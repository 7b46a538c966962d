"""The metadata of a weights file: architecture, preprocessing, classes and units, as JSON in the header of the file.

Does not import torch, so that a header can be read before a job starts.

Legend: B images · D numbers of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from pretrain.config.earlier import model_of_today
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.objective import Activation
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import family_of
from pretrain.models.variants import ViTShape, resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    import torch

    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


class WeightsMetadata(Strict):
    """The metadata of a weights file, kept in its header. Pairs are (height, width).

    Fields that only Vision Transformers have are None for other families, which name and kwargs describe.
    ``num_classes: 0`` means no head, ``mean: None`` or ``eval_transform: None`` that it is unknown how
    pixels are normalised or images resized; ``transform_problem``, which is not saved, tells why.
    For a regression, ``target_mean`` and ``target_std`` are the units of its ``num_classes`` numbers; where the head
    outputs the data's own units, as in exports, they are 0 and 1.
    ``objective`` is the name of the training's, ``activation`` makes scores of its outputs; None means unknown.
    ``precision`` and ``tf32`` are those of the training; ``precision: None`` means unknown, and fp32 is used.
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
    mean: tuple[float, float, float] | None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None
    class_names: tuple[str, ...] | None = None
    class_ids: tuple[str, ...] | None = None
    eval_transform: EvalTransformConfig | None = None
    transform_problem: str | None = Field(default=None, exclude=True)
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[PositiveFloat, ...] | None = None
    objective: str | None = None
    activation: Activation | None = None
    precision: Literal["fp32", "bf16", "autocast"] | None = None
    tf32: bool = False

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        num_classes: int,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
        *,
        scale: TargetScale | None = None,
        **more: Any,
    ) -> WeightsMetadata:
        """The metadata of weights of ``model``, trained on pixels in [0, 1] normalised by ``mean`` and ``std``.

        Args:
            model: the architecture.
            num_classes: K, the width of the head.
            mean, std: per channel; None: unknown.
            scale: the units of a regression.
            **more: ``class_names``, ``class_ids``, ``eval_transform``, ``objective``, ``activation``, ``precision``
                and ``tf32``, if known.
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
    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of pixels in [0, 1], per channel.

        Raises:
            CheckpointError: they are unknown.
        """
        if self.mean is None or self.std is None:
            problem = self.transform_problem or "the weights do not record it"
            raise CheckpointError(
                f"how pixels are normalised is unknown: {problem}; state it with --mean and --std (in a run: "
                "data.mean and data.std)"
            )
        return self.mean, self.std

    def of_model(self, model: ModelConfig) -> WeightsMetadata:
        """The same facts about weights that were fitted to ``model``, such as another resolution."""
        return self.model_copy(update={"model": model, **asdict(family_of(model).geometry(model))})

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
        return transform.model_dump(exclude=set(transform.ignored()))

    @property
    def shape(self) -> ViTShape:
        """The geometry of a Vision Transformer's weights."""
        return resolve(self.model)

    @field_validator("model", mode="before")
    @classmethod
    def _from_earlier_versions(cls, model: Any) -> Any:
        return model_of_today(model) if isinstance(model, dict) else model

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> WeightsMetadata:
        try:
            geometry = asdict(family_of(self.model).geometry(self.model))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for name, wanted in geometry.items():
            if getattr(self, name) != wanted:
                raise ValueError(f"{name} {getattr(self, name)} is not the model's {wanted}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        if (self.target_mean is None) != (self.target_std is None):
            raise ValueError("target_mean and target_std go together")
        if self.activation is not None and (self.activation == "none") != (self.target_mean is not None):
            raise ValueError(f"activation {self.activation}: none goes together with target_mean, the units of numbers")
        for what, given in (
            ("class names", self.class_names),
            ("class ids", self.class_ids),
            ("target means", self.target_mean),
            ("target standard deviations", self.target_std),
        ):
            if given is not None and len(given) != self.num_classes:
                raise ValueError(f"{len(given)} {what} for {self.num_classes} classes")
        return self


# ── the header of the file ──

METADATA = "__metadata__"  # key of the metadata in the safetensors format
HEADER_KEY = "pretrain.weights"  # entry with our metadata as JSON
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_LENGTH_BYTES = 8


class Described(NamedTuple):
    """The part of the metadata that a training needs to start from weights; mean and standard deviation per channel.

    ``problem`` tells why they are unknown.
    """

    model: ModelConfig
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    problem: str | None = None


def model_in_file(path: Path) -> ModelConfig | None:
    """The model of a weights file; None: it is not a complete weights file of ours."""
    described = described_in_file(path)
    return None if described is None else described.model


def described_in_file(path: Path) -> Described | None:
    """Model and normalisation of a weights file; None: it is not a complete weights file of ours."""
    try:
        about = _about(path)
        mean, std = (None if about[name] is None else tuple(about[name]) for name in ("mean", "std"))
        return Described(ModelConfig.model_validate(model_of_today(about["model"])), mean, std)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def outputs_in_file(path: Path) -> tuple[list[str] | None, list[str] | None, int] | None:
    """Class ids, class names and number of outputs of a weights file; None: it is not a complete one of ours."""
    try:
        about = _about(path)
        return about.get("class_ids"), about.get("class_names"), int(about["num_classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
    return json.loads(header[METADATA][HEADER_KEY])


def sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header in place, so that equal content gives equal bytes; tensors do not move.

    The safetensors writer uses a random order.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(size))
        header = {METADATA: dict(sorted(header.pop(METADATA).items())), **header}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(encoded) <= size, "the header has become longer"
        file.seek(_LENGTH_BYTES)
        file.write(encoded.ljust(size))  # the format pads with spaces
