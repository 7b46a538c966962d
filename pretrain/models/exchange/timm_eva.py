"""Our Vision Transformers with rotary positions as timm's ``Eva``, and timm's as ours where ours computes the same.

EVA's own attention has biases of queries and values only; ours then has one of zeros for the keys. LayerScales have
other names there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.translation import named_config, refusal
from pretrain.models.families.protocol import TimmTwin
from pretrain.models.variants import Size, resolve, rope_temperature

PROGRAM = "timm"
# Both take any size; no argument could switch LayerScale off.
_WITHOUT_SCALES, _WITH_SCALES = "eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"
_POOLS = {"token": "token", "norm_avg": "avg", "avg_norm": "avg", "map": "map"}


def eva_twin(model: ModelConfig, mlp_ratio: float, layers: dict[str, Any]) -> TimmTwin:
    """The constructor call of timm's Eva for a model with rotary positions.

    Args:
        model: of our family, without anything that timm's plain Vision Transformer lacks beside ``rope``.
        mlp_ratio: hidden width of the MLP by the width.
        layers: see ``TimmTwin``.

    Raises:
        CheckpointError: Eva cannot express the model.
    """
    shape = resolve(model)
    remedy = "timm's models with rotary positions have no such setting in config.json: choose --format onnx"
    for name, plain in (("block", "sequential"), ("norm", "layer_norm"), ("gelu", "erf"), ("distilled", False)):
        if getattr(model, name) != plain:
            raise refusal(PROGRAM, name, getattr(model, name), remedy)
    if shape.stem_blocks:
        raise refusal(PROGRAM, "variant", model.variant, remedy)
    if model.rope == "mixed" and model.rope_grid is not None:
        raise refusal(PROGRAM, "rope_grid", list(model.rope_grid), remedy)
    if model.layer_scale is None:
        return TimmTwin(_WITHOUT_SCALES, _arguments(model, mlp_ratio), layers)
    names = {
        f"blocks.{index}.ls{branch}.gamma": f"blocks.{index}.gamma_{branch}"
        for index in range(shape.depth)
        for branch in (1, 2)
    }
    return TimmTwin(_WITH_SCALES, _arguments(model, mlp_ratio) | {"init_values": model.layer_scale}, layers, names)


def _arguments(model: ModelConfig, mlp_ratio: float) -> dict[str, Any]:
    shape = resolve(model)
    return {
        "img_size": list(shape.img_size),
        "patch_size": shape.patch[0],
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": mlp_ratio,
        "swiglu_mlp": model.mlp == "swiglu",
        "qkv_bias": model.qkv_bias,
        "qk_norm": model.qk_norm,
        "attn_type": "rope",
        "class_token": model.class_token,
        "num_reg_tokens": model.num_registers,
        "global_pool": _POOLS[model.pool],
        "use_fc_norm": model.pool == "avg_norm",
        "use_abs_pos_emb": model.pos_embed == "learned_1d",
        "no_embed_class": not model.pos_embed_prefix,
        "use_rot_pos_emb": True,
        "rope_type": "mixed" if model.rope == "mixed" else "cat",
        "rope_grid_indexing": "xy" if model.rope == "mixed" else "ij",
        "rope_temperature": rope_temperature(model),
        "ref_feat_shape": list(model.rope_grid or shape.grid),
    }


def eva_config(twin: Any, where: Path) -> ModelConfig:
    """The config of ours that computes what one of timm's Eva models computes.

    Raises:
        CheckpointError: none of our models computes the same; the message names the difference.
    """
    _require_plain(twin, where)
    block = twin.blocks[0]
    swiglu = isinstance(block.mlp.act, nn.SiLU)
    width, patch = twin.embed_dim, twin.patch_embed.patch_size
    options: dict[str, Any] = {
        "class_token": twin.cls_token is not None,
        "num_registers": 0 if twin.reg_token is None else twin.reg_token.shape[1],
        "pool": _pool(twin, where),
        "mlp": "swiglu" if swiglu else "mlp",
        "qkv_bias": getattr(block.attn, "q_bias", None) is not None or block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "layer_norm_eps": float(block.norm1.eps),
        "pos_embed": "none" if twin.pos_embed is None else "learned_1d",
        **_rope(twin, where),
    }
    if twin.pos_embed is not None:
        options["pos_embed_prefix"] = not twin.no_embed_class
    if block.gamma_1 is not None:
        options["layer_scale"] = block.init_values or 1e-5
    return named_config(
        where,
        Size(width, len(twin.blocks), block.mlp.fc2.in_features, block.attn.num_heads),
        patch=patch[0],
        img_size=tuple(twin.patch_embed.img_size),
        **options,
    )


def our_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an Eva under our names, the biases of its queries and values joined with zeros for the keys."""
    renamed = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in state.items()}
    for name in [name for name in renamed if name.endswith(".q_bias")]:
        stem = name.removesuffix("q_bias")
        q, v = renamed.pop(name), renamed.pop(f"{stem}v_bias")
        renamed[f"{stem}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return renamed


def _require_plain(twin: Any, where: Path) -> None:
    """Modules and settings whose presence the tensors would not show."""
    from timm.layers import AttentionRope, GluMlp, Mlp
    from timm.models.eva import EvaAttention, EvaBlock

    block, patch = twin.blocks[0], twin.patch_embed.patch_size
    if type(block) is not EvaBlock:
        raise CheckpointError(f"{where}: it has a {type(block).__name__}, which our vit with rope has not")
    is_mlp = type(block.mlp) is Mlp and type(block.mlp.act) is nn.GELU and block.mlp.act.approximate == "none"
    is_glu = type(block.mlp) is GluMlp and type(block.mlp.act) is nn.SiLU and not block.mlp.gate_last
    differences = {
        f"a {type(block.mlp).__name__} of {type(block.mlp.act).__name__}": not (is_mlp or is_glu),
        f"a {type(block.attn).__name__}": type(block.attn) not in (EvaAttention, AttentionRope),
        "separate projections of q, k and v": getattr(block.attn, "qkv", None) is None,
        "a gate in attention": getattr(block.attn, "gate", None) is not None,
        "a norm in attention": not isinstance(getattr(block.attn, "norm", None), nn.Identity),
        "a norm before the blocks": not isinstance(twin.norm_pre, nn.Identity),
        f"norms {type(block.norm1).__name__}": not isinstance(block.norm1, nn.LayerNorm),
        f"patches of {patch} pixels": patch[0] != patch[1],
        "LayerScale in attention only": (block.gamma_1 is None) != (block.gamma_2 is None),
        "no final norm, or two": isinstance(twin.norm, nn.Identity) == isinstance(twin.fc_norm, nn.Identity),
    }
    for difference, found in differences.items():
        if found:
            raise CheckpointError(f"{where}: it has {difference}, which our vit with rope has not")


def _pool(twin: Any, where: Path) -> str:
    pool = twin.global_pool
    if pool == "avg":
        return "norm_avg" if isinstance(twin.fc_norm, nn.Identity) else "avg_norm"
    if pool not in ("token", "map") or not isinstance(twin.fc_norm, nn.Identity):
        raise CheckpointError(f"{where}: global_pool {pool!r} is not token, avg or map pooling after the norm")
    if pool == "map" and twin.num_prefix_tokens:
        raise CheckpointError(f"{where}: attention pooling over class and register tokens too")
    return pool


def _rope(twin: Any, where: Path) -> dict[str, Any]:
    from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingMixed

    rope = twin.rope
    kind = {RotaryEmbeddingCat: "axial", RotaryEmbeddingMixed: "mixed"}.get(type(rope))
    wanted = {"axial": "ij", "mixed": "xy"}.get(kind or "")
    indexing = getattr(rope, "grid_indexing", None)
    changed = [name for name in ("grid_offset",) if getattr(rope, name, 0)]
    if kind == "axial" and (rope.grid_type != "index" or rope.rotate_half):
        changed.append("grid_type or rotate_half")
    if rope is None or kind is None or indexing != wanted or changed or rope.aug_active:
        raise CheckpointError(
            f"{where}: rotary positions of {type(rope).__name__} with grid_indexing {indexing!r} "
            f"({', '.join(changed) or 'as they are'}) are not ours, which are cat with 'ij' or mixed with 'xy'"
        )
    found: dict[str, Any] = {"rope": kind, "rope_temperature": float(rope.temperature)}
    reference, grid = getattr(rope, "ref_feat_shape", None), tuple(twin.patch_embed.grid_size)
    if reference is not None and tuple(reference) != grid:
        found["rope_grid"] = tuple(reference)
    return found
