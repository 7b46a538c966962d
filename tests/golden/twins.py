"""Our models with random weights in every tensor, and timm's model with the same weights."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import timm.models.vision_transformer as timm_vit
import torch
from timm.layers import Attention, HybridEmbed, Mlp, RmsNorm, RotaryEmbeddingCat, SwiGLUPacked, build_sincos2d_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer_hybrid import _resnetv2
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.init import init_weights
from pretrain.models.vit import VisionTransformer, build_vit

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_dim": 80}


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"variant": "nano/8", "img_size": (32, 48), **SMALL, **changes})


def our_model(config: ModelConfig, num_classes: int = 11, seed: int = 0) -> VisionTransformer:
    """A model whose weights, norms and head included, are far from 0, 1 and each other."""
    model = build_vit(config, num_classes)
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model.double() if model.shape.stem_blocks else model  # 23 norms of tiny maps blow rounding up


def timm_twin(model: VisionTransformer, drop_path_rate: float = 0.0) -> Any:
    """timm's model of the same architecture with the same weights."""
    config, shape = model.config, model.shape
    if config.pos_embed == "relative_bias":
        twin: Any = _relative_twin(model)
    elif config.rope is not None:
        twin = _rotary_twin(model)
    else:
        fixed = config.pos_embed == "sincos2d_timm"
        twin = timm_vit.VisionTransformer(
            **_common(model),
            class_token=config.class_token,
            reg_tokens=config.num_registers,
            no_embed_class=fixed or not config.pos_embed_prefix,
            pos_embed="none" if config.pos_embed == "none" else "learn",
            global_pool={"token": "token", "map": "map"}.get(config.pool, "avg"),  # type: ignore[arg-type]
            fc_norm=False if config.pool == "norm_avg" else None,
            pos_drop_rate=config.dropout,
            patch_drop_rate=config.patch_drop,
            drop_path_rate=drop_path_rate,
            embed_layer=_hybrid(shape.stem_blocks) if shape.stem_blocks else timm_vit.PatchEmbed,
            init_values=config.layer_scale,
            act_layer=_activation(config),
            mlp_layer=_mlp(config),
            qkv_bias=config.qkv_bias,
            attn_layer=_Gated if config.gated_attention else Attention,
            block_fn=timm_vit.ParallelScalingBlock if config.block == "parallel" else timm_vit.Block,
        )
    state = {timms_name(twin, name): tensor for name, tensor in model.state_dict().items()}
    if config.pos_embed == "sincos2d_timm":
        state["pos_embed"] = build_sincos2d_pos_embed(list(shape.grid), shape.embed_dim)[None]
    twin.load_state_dict(state, strict=True)
    return twin.to(model.patch_embed.proj.weight.dtype).train(model.training)


def _common(model: VisionTransformer) -> dict[str, Any]:
    config, shape = model.config, model.shape
    return {
        "img_size": shape.img_size,
        "patch_size": 1 if shape.stem_blocks else shape.patch,
        "num_classes": model.num_classes,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": shape.mlp_dim / shape.embed_dim * (2 if config.mlp == "swiglu" and config.rope is None else 1),
        "qk_norm": config.qk_norm,
        "proj_drop_rate": config.dropout,
        "norm_layer": functools.partial(NORMS[config.norm], eps=config.layer_norm_eps),
    }


NORMS: dict[str, Any] = {"layer_norm": nn.LayerNorm, "rms_norm": RmsNorm}


def _activation(config: ModelConfig) -> Any:
    if config.mlp == "swiglu":
        return nn.SiLU
    return "gelu" if config.gelu == "erf" else "gelu_tanh"


def _mlp(config: ModelConfig) -> Any:
    return SwiGLUPacked if config.mlp == "swiglu" else Mlp


class _Gated(Attention):
    """timm's attention with the gate that its VisionTransformer has no argument for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, gated=True)


def timms_name(twin: nn.Module, name: str) -> str:
    """The name of a tensor in timm's model: Eva's LayerScales have another."""
    return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name) if isinstance(twin, Eva) else name


def _hybrid(stem_blocks: tuple[int, ...]) -> Any:
    return functools.partial(HybridEmbed, backbone=_resnetv2(stem_blocks))


def _relative_twin(model: VisionTransformer) -> VisionTransformerRelPos:
    config = model.config
    return VisionTransformerRelPos(
        **_common(model),
        class_token=config.class_token,
        global_pool="token" if config.pool == "token" else "avg",
        fc_norm=config.pool == "avg_norm",
        rel_pos_type="bias",
        shared_rel_pos=config.pos_embed_placement == "every_layer_shared",
        init_values=config.layer_scale,
        block_fn=RelPosBlock,
    )


def _rotary_twin(model: VisionTransformer) -> Eva:
    config, shape = model.config, model.shape
    twin = Eva(
        **_common(model),
        class_token=config.class_token,
        num_reg_tokens=config.num_registers,
        pos_drop_rate=config.dropout,
        patch_drop_rate=config.patch_drop,
        global_pool={"token": "token", "map": "map"}.get(config.pool, "avg"),  # type: ignore[arg-type]
        use_fc_norm=config.pool == "avg_norm",
        use_abs_pos_emb=config.pos_embed == "learned_1d",
        no_embed_class=not config.pos_embed_prefix,
        use_rot_pos_emb=True,
        attn_type="rope",
        init_values=config.layer_scale,
        swiglu_mlp=config.mlp == "swiglu",
        qkv_bias=config.qkv_bias,
        rope_type={"axial": "cat", "mixed": "mixed"}[str(config.rope)],
        rope_grid_indexing="xy" if config.rope == "mixed" else "ij",
        rope_temperature=config.rope_temperature or 10_000.0,
        ref_feat_shape=config.rope_grid,
    )
    attention: Any
    for block in twin.blocks:
        attention = block.attn
        if config.gated_attention:
            attention.gate = nn.Linear(shape.embed_dim, shape.embed_dim, bias=config.qkv_bias)
        if config.rope_register_temperature is not None:
            attention.num_prefix_tokens -= config.num_registers
    if config.rope_register_temperature is not None:
        _turn_registers(twin, model)
    return twin


def _turn_registers(twin: Any, model: VisionTransformer) -> None:
    """ViT-5's rotary registers: timm's embedding of their own square grid before that of the patches."""
    side, head_dim = math.isqrt(model.config.num_registers), model.shape.embed_dim // model.shape.num_heads
    temperature: Any = model.config.rope_register_temperature
    own = RotaryEmbeddingCat(head_dim, temperature=temperature, in_pixels=False, feat_shape=[side, side]).get_embed()
    both = torch.cat([own, twin.rope.get_embed()])
    twin.rope.get_embed = lambda *args, **kwargs: both


def some_images(model: VisionTransformer, num_images: int = 3, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, *model.shape.img_size, generator=generator)
    return images.to(model.patch_embed.proj.weight.dtype)
