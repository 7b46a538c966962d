"""Translates our Vision Transformers to timm's names and constructor arguments, and timm's modules back.

Pooling, form of GELU and epsilon are read from the modules, never guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.architecture import named_config, refusal, refuse_inexpressible
from pretrain.models.families.protocol import TimmTwin
from pretrain.models.variants import STEM_BLOCKS, Size, resolve

PROGRAM = "timm"
EPSILON = 1e-6  # of timm's LayerNorm; config.json cannot name another
# timm's registered names by our size; any other size is vit_base with other numbers.
_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
_CARRIED = frozenset(
    {"class_token", "distilled", "num_registers", "layer_scale", "qk_norm", "pool", "pos_embed", "pos_embed_prefix"}
    | {"gelu", "layer_norm_eps"}
)


def vit_twin(model: ModelConfig) -> TimmTwin:
    """The timm constructor call that builds the same network.

    Raises:
        CheckpointError: timm cannot express the model.
    """
    refuse_inexpressible(model, PROGRAM, "timm", _CARRIED)
    if model.pos_embed not in ("learned_1d", "none"):
        raise refusal(PROGRAM, "pos_embed", model.pos_embed)
    if model.layer_norm_eps != EPSILON:
        raise refusal(PROGRAM, "layer_norm_eps", model.layer_norm_eps)
    layers = {
        "pool_size": None,
        "first_conv": "patch_embed.backbone.stem.conv" if resolve(model).stem_blocks else "patch_embed.proj",
        "classifier": ["head", "head_dist"] if model.distilled else "head",
    }
    return TimmTwin(_architecture(model), _arguments(model), layers)


def _architecture(model: ModelConfig) -> str:
    """A registered name; for a custom size, the name of a model that takes any size."""
    from timm import is_model

    shape = resolve(model)
    if shape.stem_blocks:
        return {3: "vit_base_r50_s16_224", 4: "vit_large_r50_s32_224"}[len(shape.stem_blocks)]
    if model.distilled:
        return "deit_base_distilled_patch16_224"
    size = _SIZES.get(model.variant.split("/")[0], "base")
    name = f"vit_{size}_patch{shape.patch[0]}_224"
    return name if is_model(name) else "vit_base_patch16_224"


def _arguments(model: ModelConfig) -> dict[str, Any]:
    """Arguments of timm's constructor; all that shape the model are named, whatever the architecture's defaults are."""
    shape = resolve(model)
    arguments: dict[str, Any] = {
        "img_size": list(shape.img_size),
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": _mlp_ratio(shape.mlp_dim, shape.embed_dim),
        "class_token": model.class_token,
        "global_pool": {"token": "token", "norm_avg": "avg", "avg_norm": "avg", "map": "map"}[model.pool],
        "fc_norm": model.pool == "avg_norm",
        "act_layer": "gelu" if model.gelu == "erf" else "gelu_tanh",
        "qk_norm": model.qk_norm,
        "reg_tokens": model.num_registers,
        "pos_embed": "learn" if model.pos_embed == "learned_1d" else "none",
        "no_embed_class": not model.pos_embed_prefix,
    }
    if not shape.stem_blocks:
        arguments["patch_size"] = shape.patch[0]
    if model.layer_scale is not None:
        arguments["init_values"] = model.layer_scale
    return arguments


def _mlp_ratio(mlp_dim: int, embed_dim: int) -> float:
    """timm's MLP ratio, whose product with the width timm truncates to an integer."""
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else (mlp_dim + 0.5) / embed_dim


def is_plain_vit(twin: Any) -> bool:
    """Whether one of our Vision Transformers can compute the same as a timm module."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import Block, VisionTransformer

    return type(twin) in (VisionTransformer, VisionTransformerDistilled) and type(twin.blocks[0]) is Block


def vit_config(twin: Any, where: Path) -> ModelConfig:
    """The config of one of timm's plain Vision Transformers.

    Args:
        twin: see ``is_plain_vit``.
        where: the file that describes it, for errors.

    Raises:
        CheckpointError: none of our models computes the same.
    """
    from timm.models.deit import VisionTransformerDistilled

    block, patch = twin.blocks[0], twin.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise CheckpointError(f"{where}: patches of {patch} pixels are not read, only square ones; name other weights")
    options: dict[str, Any] = {
        "class_token": twin.has_class_token,
        "distilled": type(twin) is VisionTransformerDistilled,
        "num_registers": twin.num_reg_tokens,
        "pool": _pool(twin, where),
        "gelu": _gelu_form(block.mlp.act, where),
        "layer_norm_eps": _epsilon(twin, where),
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "pos_embed": "none" if twin.pos_embed is None else "learned_1d",
    }
    if twin.pos_embed is not None:
        options["pos_embed_prefix"] = not twin.no_embed_class
    if hasattr(block.ls1, "gamma"):
        options["layer_scale"] = getattr(block.ls1, "init_values", None) or 1e-5
    stem = getattr(twin.patch_embed, "backbone", None)
    return named_config(
        where,
        Size(twin.embed_dim, len(twin.blocks), block.mlp.fc1.out_features, block.attn.num_heads),
        patch=patch[0] if stem is None else _stem_stride(stem, where),
        stem="" if stem is None else "R50+",
        img_size=tuple(twin.patch_embed.img_size),
        **options,
    )


def _stem_stride(stem: Any, where: Path) -> int:
    """The total stride of a hybrid's ResNet, from its blocks per stage."""
    blocks = tuple(len(stage.blocks) for stage in getattr(stem, "stages", ()))
    strides = {known: stride for stride, known in STEM_BLOCKS.items()}
    if blocks not in strides:
        raise CheckpointError(f"{where}: a stem of {blocks} blocks is not read; known are {list(strides)}")
    return strides[blocks]


def _pool(twin: Any, where: Path) -> str:
    if twin.global_pool == "avg" and not twin.pool_include_prefix:
        return "norm_avg" if isinstance(twin.fc_norm, nn.Identity) else "avg_norm"
    if twin.global_pool in ("token", "map") and isinstance(twin.fc_norm, nn.Identity):
        return twin.global_pool
    raise CheckpointError(
        f"{where}: global_pool {twin.global_pool!r} with fc_norm {not isinstance(twin.fc_norm, nn.Identity)} and "
        f"pool_include_prefix {twin.pool_include_prefix} is not a pooling of this program, which has token, avg and map"
    )


def _gelu_form(activation: nn.Module, where: Path) -> str:
    """The form of GELU that a module computes, determined by evaluating it."""
    probe = torch.linspace(-3, 3, 61)
    found = activation(probe)
    for form, approximate in (("erf", "none"), ("tanh", "tanh")):
        if torch.allclose(found, F.gelu(probe, approximate=approximate), rtol=0, atol=1e-6):
            return form
    raise CheckpointError(f"{where}: the activation {type(activation).__name__} is not GELU; name other weights")


def _epsilon(twin: nn.Module, where: Path) -> float:
    named = [(name, module) for name, module in twin.named_modules() if ".backbone." not in name]
    norms = [module for name, module in named if name.split(".")[-1].startswith(("norm", "fc_norm"))]
    found = {module.eps for module in norms if isinstance(module, nn.LayerNorm)}
    others = {type(m).__name__ for m in norms if not isinstance(m, (nn.LayerNorm, nn.Identity))}
    if len(found) != 1 or others:
        raise CheckpointError(f"{where}: norms {sorted(others)} with epsilon {sorted(found)}; one LayerNorm is read")
    return float(found.pop())
