"""Translates architectures of other programs to our config, with errors for unsupported options."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.variants import VARIANTS, Size, resolve

# Settings for training only; a file for inference need not carry them.
TRAINING_ONLY = frozenset({"dropout", "drop_path", "drop_path_shape", "head_init", "head_bias", "mask_token"})
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
