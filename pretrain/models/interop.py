"""Plain weights files: safetensors with timm's names, and what is needed to use them in the file's header.

Nothing is unpickled. The grid, the prefix tokens and the normalisation are read from the file, never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_serializer, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import sync
from pretrain.models.families.registry import family_of, tensor_shapes
from pretrain.models.header import HEADER_KEY, sort_metadata
from pretrain.models.target_scale import TargetScale
from pretrain.models.variants import ViTShape, resolve

FORMAT_VERSION = 1
Task = Literal["classification", "regression", "segmentation"]
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class WeightsMetadata(Strict):
    """What a weights file says about itself. Pairs are (height, width).

    What only a Vision Transformer has is None for timm's backbones, which their name and kwargs describe.
    ``num_classes: 0`` says that there is no head; ``eval_transform: None`` that it is not known how images are resized.
    Of a regression ``target_mean`` and ``target_std`` are the units of its ``num_classes`` numbers.
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
        class_names: tuple[str, ...] | None = None,
        *,
        class_ids: tuple[str, ...] | None = None,
        eval_transform: EvalTransformConfig | None = None,
        scale: TargetScale | None = None,
    ) -> WeightsMetadata:
        """The metadata of weights of ``model``, trained on pixels in [0, 1] normalised by ``mean`` and ``std``."""
        return cls(
            model=model,
            num_classes=num_classes,
            **asdict(family_of(model).geometry(model)),
            mean=mean,
            std=std,
            class_names=class_names,
            class_ids=class_ids,
            eval_transform=eval_transform,
            target_mean=None if scale is None else scale.mean,
            target_std=None if scale is None else scale.std,
        )

    @property
    def task(self) -> Task:
        """What the head gives: logits of an image's classes, numbers, or logits of every pixel's classes."""
        if self.model.head == "dense":
            return "segmentation"
        return "classification" if self.target_mean is None else "regression"

    @property
    def scale(self) -> TargetScale | None:
        """The units of a regression; None of what is none."""
        if self.target_mean is None or self.target_std is None:
            return None
        return TargetScale(self.target_mean, self.target_std)

    @field_serializer("eval_transform")
    def _without_ignored_keys(self, transform: EvalTransformConfig | None) -> dict[str, Any] | None:
        """Written out with its defaults, so that the file says all, but not with keys that its kind refuses."""
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


def save_weights(path: str | Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
    """Writes a weights file; it appears under its name only when it is whole and on the disk.

    Args:
        path: ends in .safetensors by convention; the folder must exist.
        state: the whole tensors under the names of ``variants.parameter_shapes``, of any floating type and device.
        metadata: what the file says about itself.
    """
    path = Path(path)
    problem = _unlike_metadata({name: tuple(tensor.shape) for name, tensor in state.items()}, metadata)
    assert problem is None, problem
    partial = path.with_name(path.name + ".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, partial, metadata={"format": "pt", HEADER_KEY: metadata.model_dump_json()})
    sort_metadata(partial)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a weights file: its tensors on the CPU, in the type they were saved in, and its metadata.

    Raises:
        CheckpointError: no such file, truncated, not safetensors, no metadata of ours or of another version, or
            tensors that are not what the metadata says.
    """
    state, header = read_tensors(path)
    metadata = _parse(Path(path), header)
    check_tensors(state, metadata, path)
    return state, metadata


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Any safetensors file: its tensors on the CPU, in the type they were saved in, and the texts of its header.

    Raises:
        CheckpointError: no such file, pickled, truncated or not safetensors.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it was truncated or damaged: copy or export it again"
        ) from error


def read_metadata(path: str | Path) -> WeightsMetadata | None:
    """What a safetensors file says about itself, without its tensors; None: it is no weights file of ours.

    Raises:
        CheckpointError: as ``load_weights``.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or export it again") from error
    return _parse(path, header) if is_weights_header(header) else None


def is_weights_header(header: Mapping[str, str]) -> bool:
    """Whether the texts of a safetensors header are those of a weights file of ours."""
    return HEADER_KEY in header


def check_tensors(state: Mapping[str, Tensor], metadata: WeightsMetadata, path: str | Path) -> None:
    """Checks names and shapes against the metadata.

    Raises:
        CheckpointError: names the first tensor that is not as the metadata's model has it.
    """
    problem = _unlike_metadata({name: tuple(tensor.shape) for name, tensor in state.items()}, metadata)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}; the file is damaged or was edited: export it again")


def _refuse_foreign(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path}: {what}; name a .safetensors file")
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS):
        raise CheckpointError(
            f"{path}: a pickled checkpoint or a zip archive; nothing is unpickled here: save its tensors as "
            "safetensors with pretrain.models.interop.save_weights"
        )


def _parse(path: Path, header: Mapping[str, str]) -> WeightsMetadata:
    text = header.get(HEADER_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: its header has no {HEADER_KEY!r}, so its grid, prefix tokens and normalisation are unknown and "
            "are not guessed; write it again with pretrain.models.interop.save_weights"
        )
    try:
        raw = json.loads(text)
        version = raw.get("version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: weights format {version!r}; this program reads version {FORMAT_VERSION}: use the program "
                "that wrote it to export it again"
            )
        return WeightsMetadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{path}: metadata in its header: {where}: {first['msg']}; export it again") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: the metadata in its header is not JSON ({error}); export it again") from error


def expected_shapes(metadata: WeightsMetadata) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a file with this metadata holds; without classes there is no head."""
    shapes = tensor_shapes(metadata.model, max(1, metadata.num_classes))
    if metadata.num_classes:
        return shapes
    return {name: shape for name, shape in shapes.items() if not name.startswith(("head.", "head_dist."))}


def _unlike_metadata(shapes: Mapping[str, tuple[int, ...]], metadata: WeightsMetadata) -> str | None:
    """The first tensor that is not as the metadata's model has it, in words; None if all are."""
    expected = expected_shapes(metadata)
    for name in [*expected, *(name for name in shapes if name not in expected)]:
        found, wanted = shapes.get(name), expected.get(name)
        if found != wanted:
            return f"tensor {name} is {found or 'missing'}, but its metadata's model has {wanted or 'no such tensor'}"
    return None
