"""Whether weights fit a model, as far as the two configs and a file's header say; without torch, so before any job."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.variants import placement, resolve

HEADER_KEY = "pretrain.weights"  # of a weights file's header: what the file says about itself, as JSON
LONGEST_HEADER = 100_000_000  # bytes, as the safetensors format has it


def model_in_file(path: Path) -> ModelConfig | None:
    """The model of a weights file, from its header; None: it is no whole weights file of ours."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
        return ModelConfig.model_validate(json.loads(header["__metadata__"][HEADER_KEY])["model"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def require_same(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Weights of ``theirs`` can start ``ours``. Of two timm models their networks say the rest (``timm_surgery``).

    Raises:
        CheckpointError: names the setting that differs, and the tensor where that shows.
    """
    if theirs.is_timm != ours.is_timm:
        raise CheckpointError(
            f"the weights are of model.name: {theirs.name}, the model is {ours.name}; set model.name as in the "
            "weights, or name other weights"
        )
    if not theirs.is_timm:
        _require_same_settings(theirs, ours)
        _require_same_shape(theirs, ours)
        _require_same_sequence(theirs, ours)


def _require_same_settings(theirs: ModelConfig, ours: ModelConfig) -> None:
    """What the shapes of the tensors would not show, or would show less clearly."""
    if theirs.distilled != ours.distilled:
        raise CheckpointError(
            f"the weights are of a model with{'' if theirs.distilled else 'out'} a distillation token; set "
            f"model.distilled: {str(theirs.distilled).lower()}, or name other weights"
        )
    for name, found, wanted in (
        ("num_registers", theirs.num_registers, ours.num_registers),
        ("qk_norm", theirs.qk_norm, ours.qk_norm),
        ("layer_scale", theirs.layer_scale is not None, ours.layer_scale is not None),
        ("pos_embed", theirs.pos_embed, ours.pos_embed),
        ("pos_embed_placement", placement(theirs), placement(ours)),
        ("pos_embed_prefix", theirs.pos_embed_prefix, ours.pos_embed_prefix),
        ("rope_temperature", theirs.rope_temperature, ours.rope_temperature),
    ):
        if found != wanted:
            raise CheckpointError(
                f"the weights have model.{name}: {_shown(getattr(theirs, name))}, the model has "
                f"{_shown(getattr(ours, name))}; set it as in the weights, or name other weights"
            )


def _require_same_shape(theirs: ModelConfig, ours: ModelConfig) -> None:
    old, new = resolve(theirs), resolve(ours)
    if new.num_prefix_tokens > old.num_prefix_tokens:
        raise CheckpointError(
            "tensor cls_token of the model is not in the weights, which were trained without a class token; "
            "set model.class_token: false and model.pool: norm_avg or avg_norm"
        )
    tensors = {
        "patch": "patch_embed.proj.weight",
        "depth": f"blocks.{min(old.depth, new.depth)}.norm1.weight",
        "embed_dim": "pos_embed",
        "mlp_dim": "blocks.0.mlp.fc1.weight",
        "num_heads": "blocks.0.attn.qkv.weight",
    }
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in tensors}
    pairs |= {name: (getattr(theirs, name), getattr(ours, name)) for name in ("gelu", "layer_norm_eps")}
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            where = f", which shows in tensor {tensors[name]}" if name in tensors else ""
            remedy = f"model.variant: {theirs.variant}" + ("" if name == "patch" else f" and model.{name}: {found}")
            raise CheckpointError(
                f"the weights are a {theirs.variant} with {name} {found}, the model {ours.variant} has "
                f"{wanted}{where}; set {remedy}, or name other weights"
            )


def _require_same_sequence(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Relative keys number the offsets of one sequence."""
    old, new = resolve(theirs), resolve(ours)
    if ours.pos_embed == "relative_1d" and (old.grid, old.num_tokens) != (new.grid, new.num_tokens):
        raise CheckpointError(
            f"tensor blocks.0.attn.rel_pos.relative_keys numbers offsets in a sequence of {old.num_tokens} tokens on a "
            f"grid of {old.grid[0]}×{old.grid[1]}; on {new.grid[0]}×{new.grid[1]} with {new.num_tokens} tokens a "
            "number is another direction, and nothing can be interpolated; set model.img_size and model.class_token as "
            "in the weights, or name weights with pos_embed: relative_bias, rope_2d or a learned kind"
        )


def _shown(value: object) -> str:
    """A setting as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
