"""Plain weights files: safetensors with timm's names, and what is needed to use them in the file's header.

Nothing is unpickled. The grid, the prefix tokens and the normalisation are read from the file, never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.config.schema import ModelConfig, PositiveFloat, PositiveInt, Strict
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import sync
from pretrain.models.variants import ViTShape, parameter_shapes, resolve

FORMAT_VERSION = 1
_HEADER_KEY = "pretrain.weights"
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class WeightsMetadata(Strict):
    """What a weights file says about itself. Pairs are (height, width)."""

    version: Literal[1] = FORMAT_VERSION
    model: ModelConfig
    num_classes: PositiveInt
    img_size: tuple[PositiveInt, PositiveInt]
    patch: tuple[PositiveInt, PositiveInt]
    grid: tuple[PositiveInt, PositiveInt]
    num_prefix_tokens: int
    pool: str
    gelu: str
    layer_norm_eps: PositiveFloat
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    class_names: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        class_names: tuple[str, ...] | None = None,
    ) -> WeightsMetadata:
        """The metadata of weights of ``model``, trained on pixels in [0, 1] normalised by ``mean`` and ``std``."""
        shape = resolve(model)
        return cls(
            model=model,
            num_classes=num_classes,
            img_size=shape.img_size,
            patch=shape.patch,
            grid=shape.grid,
            num_prefix_tokens=shape.num_prefix_tokens,
            pool=model.pool,
            gelu=model.gelu,
            layer_norm_eps=model.layer_norm_eps,
            mean=mean,
            std=std,
            class_names=class_names,
        )

    @property
    def shape(self) -> ViTShape:
        """The geometry of the weights."""
        return resolve(self.model)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> WeightsMetadata:
        try:
            shape = self.shape
        except ConfigError as error:
            raise ValueError(str(error)) from error
        for name in ("img_size", "patch", "grid", "num_prefix_tokens"):
            if getattr(self, name) != getattr(shape, name):
                raise ValueError(f"{name} {getattr(self, name)} is not the model's {getattr(shape, name)}")
        for name in ("pool", "gelu", "layer_norm_eps"):
            if getattr(self, name) != getattr(self.model, name):
                raise ValueError(f"{name} {getattr(self, name)} is not the model's {getattr(self.model, name)}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.num_classes} classes")
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
    save_file(tensors, partial, metadata={"format": "pt", _HEADER_KEY: metadata.model_dump_json()})
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads a weights file: its tensors on the CPU, in the type they were saved in, and its metadata.

    Raises:
        CheckpointError: no such file, truncated, not safetensors, no metadata of ours or of another version, or
            tensors that are not what the metadata says.
    """
    path = Path(path)
    _refuse_foreign(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = _parse(path, file.metadata() or {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            problem = _unlike_metadata(shapes, metadata)
            if problem is not None:
                raise CheckpointError(f"{path}: {problem}; the file is damaged or was edited: export it again")
            return {name: file.get_tensor(name) for name in shapes}, metadata
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); it was truncated or damaged: copy or export it again"
        ) from error


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
    text = header.get(_HEADER_KEY)
    if text is None:
        raise CheckpointError(
            f"{path}: its header has no {_HEADER_KEY!r}, so its grid, prefix tokens and normalisation are unknown and "
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


def _unlike_metadata(shapes: Mapping[str, tuple[int, ...]], metadata: WeightsMetadata) -> str | None:
    """The first tensor that is not as the metadata's model has it, in words; None if all are."""
    expected = parameter_shapes(metadata.model, metadata.num_classes)
    for name in [*expected, *(name for name in shapes if name not in expected)]:
        found, wanted = shapes.get(name), expected.get(name)
        if found != wanted:
            return f"tensor {name} is {found or 'missing'}, but its metadata's model has {wanted or 'no such tensor'}"
    return None
