"""Translates architecture and preprocessing between our config and other programs; shared by the formats.

timm and Hugging Face resize with Pillow's antialiased filters (or PyTorch's, which follow them to one or two of 256
levels), so of our filters bilinear_aa and bicubic_aa have a counterpart there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pretrain.config.schema.model import TRAINING_ONLY, ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import VARIANTS, Size, resolve

# ── architecture ──

GEOMETRY = frozenset({"name", "variant", "img_size", "embed_dim", "depth", "num_heads", "mlp_dim"})


def named_config(
    where: str | Path, size: Size, *, patch: int, img_size: tuple[int, int], stem: str = "", **options: Any
) -> ModelConfig:
    """The config of a Vision Transformer from its dimensions: a named size if one fits, else B with overrides.

    Args:
        where: the file, for errors.
        size: widths, depth and heads.
        patch: its side in pixels.
        img_size: (height, width) in pixels.
        stem: prefix of a hybrid's variant, before the size (``patch`` is then its total stride).
        **options: other fields of ModelConfig.

    Raises:
        CheckpointError: no model of ours has these numbers.
    """
    names = [name for name, row in VARIANTS.items() if row == size]
    overrides = {} if names else size._asdict()
    side: Any = img_size[0] if img_size[0] == img_size[1] else img_size
    try:
        config = ModelConfig(
            variant=f"{stem}{names[0] if names else 'B'}/{patch}", img_size=side, **overrides, **options
        )
        resolve(config)
    except (ValidationError, ConfigError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{where}: no architecture of this program: {reason}") from error
    return config


def square_grid(num_tokens: int, where: str | Path, tensor: str) -> tuple[int, int]:
    """The grid of ``num_tokens`` patch tokens, for a format with square grids only.

    Raises:
        CheckpointError: the number is not a square.
    """
    side = math.isqrt(num_tokens)
    if not num_tokens or side * side != num_tokens:
        raise CheckpointError(
            f"{where}: tensor {tensor} has rows for {num_tokens} patches, which is not a square grid, and the format "
            "does not say which grid it is; export it again with a program that does (timm or Hugging Face folder)"
        )
    return side, side


def refuse_inexpressible(model: ModelConfig, program: str, format: str, expressed: Collection[str]) -> None:
    """Refuses a model with an option that ``program`` lacks, rather than writing a different model.

    Args:
        model: of the weights.
        program: the program whose format it is, for the error.
        format: its name, as in ``--format``.
        expressed: fields of ModelConfig that the format carries.

    Raises:
        CheckpointError: names the field and the remedy.
    """
    formats = model.family.formats
    if format not in formats:
        raise refusal(program, "name", model.name, f"choose --format {' or '.join(formats)}")
    known = GEOMETRY | TRAINING_ONLY | set(expressed)
    for name, field in ModelConfig.model_fields.items():
        value = getattr(model, name)
        if name in known or value == field.get_default(call_default_factory=True):
            continue
        raise refusal(program, name, value)


def refusal(program: str, name: str, value: object, remedy: str = "") -> CheckpointError:
    """The error for an option that a format cannot express."""
    if not remedy and name == "representation_size":
        remedy = "give --drop-head to export without the head, or train with model.representation_size: null"
    return CheckpointError(
        f"model.{name}: {value} cannot be expressed for {program}; "
        f"{remedy or 'choose another --format: onnx expresses every model'}"
    )


def require(state: Mapping[str, Tensor], name: str, where: str | Path, program: str) -> Tensor:
    """The tensor ``name`` of another program's file.

    Raises:
        CheckpointError: it is not there.
    """
    if name not in state:
        raise CheckpointError(
            f"{where}: tensor {name} is missing, so these are not the weights of a Vision Transformer of {program}; "
            "name other weights, or the format that they have"
        )
    return state[name]


def refuse_leftovers(left: Collection[str], where: str | Path, program: str) -> None:
    """Refuses tensors that no part of the model uses.

    Raises:
        CheckpointError: names the first of them.
    """
    if left:
        raise CheckpointError(
            f"{where}: tensor {sorted(left)[0]} has no place in a Vision Transformer of {program} that this program "
            f"reads ({len(left)} such tensors): the weights are of another architecture"
        )


# ── preprocessing ──

# Our filter → (timm's name, Pillow's number, which Hugging Face writes).
FILTERS: dict[str, tuple[str, int]] = {"bilinear_aa": ("bilinear", 2), "bicubic_aa": ("bicubic", 3)}


def known_transform(metadata: WeightsMetadata, program: str) -> EvalTransformConfig:
    """The evaluation transform of these weights, if ``program`` supports it.

    Raises:
        CheckpointError: it is unknown, or the filter has no counterpart.
    """
    transform = metadata.eval_transform
    if transform is None:
        raise CheckpointError(
            "the weights do not say how images are resized for them (eval_transform); state it with --resize, "
            "--crop-fraction and --resize-filter"
        )
    if transform.resize == "resmall":
        raise CheckpointError(
            f"data.eval_transform.resize: resmall has no counterpart in {program}, which rounds the long side down; "
            "give --resize short_side if the weights may be used with that instead"
        )
    if transform.resize_filter not in FILTERS:
        raise CheckpointError(
            f"data.eval_transform.resize_filter: {transform.resize_filter} has no counterpart in {program}; give "
            f"--resize-filter {' or '.join(FILTERS)} if the weights may be used with that instead"
        )
    return transform


def timm_settings(metadata: WeightsMetadata) -> dict[str, Any]:
    """``interpolation``, ``crop_mode`` and ``crop_pct`` of timm's ``pretrained_cfg``.

    Raises:
        CheckpointError: timm cannot express it, or it is unknown.
    """
    transform = known_transform(metadata, "timm")
    settings: dict[str, Any] = {"interpolation": FILTERS[transform.resize_filter][0]}
    if transform.resize == "squash":
        return settings | {"crop_mode": "squash", "crop_pct": 1.0}
    mode = "squash" if transform.resize == "squash_crop" else "center"
    return settings | {"crop_mode": mode, "crop_pct": transform.crop_fraction}


def from_timm(settings: Mapping[str, Any], img_size: tuple[int, int]) -> EvalTransformConfig | None:
    """Our transform for timm's ``resolve_data_config``; None if there is no equivalent."""
    names = {name: ours for ours, (name, _) in FILTERS.items()}
    chosen, mode, share = names.get(settings["interpolation"]), settings["crop_mode"], settings["crop_pct"]
    if chosen is None or mode not in ("squash", "center"):
        return None
    if mode == "squash" and share == 1.0:
        return _transform(resize="squash", resize_filter=chosen)
    resize = "squash_crop" if mode == "squash" else "short_side"
    return _transform(resize=resize, crop_fraction=share, resize_filter=chosen)


def _transform(**fields: Any) -> EvalTransformConfig | None:
    try:
        return EvalTransformConfig(**fields)
    except ValidationError:
        return None
