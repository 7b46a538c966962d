"""Our Vision Transformers as timm's ``VisionTransformer``, and timm's as ours where ours computes the same.

timm's modules are inspected: pooling, form of GELU and epsilon are read from them, never guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.exchange.timm_eva import eva_config, eva_twin, our_tensors
from pretrain.models.exchange.timm_naflex import naflex_config, plain_tensors
from pretrain.models.exchange.translation import named_config, refusal, refuse_inexpressible
from pretrain.models.families.protocol import TimmTwin
from pretrain.models.families.registry import tensor_shapes
from pretrain.models.variants import STEM_BLOCKS, Size, resolve

PROGRAM = "timm"
EPSILON = 1e-6  # of timm's LayerNorm; config.json cannot name another
# timm's registered names by our size; any other size is vit_base with other numbers.
_SIZES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
_CARRIED = frozenset(
    {"class_token", "distilled", "num_registers", "layer_scale", "qk_norm", "pool", "pos_embed", "pos_embed_prefix"}
    | {"gelu", "layer_norm_eps", "block", "norm", "mlp", "qkv_bias", "rope", "rope_temperature", "rope_grid"}
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
    _refuse_mixtures(model)
    layers = {
        "pool_size": None,
        "first_conv": "patch_embed.backbone.stem.conv" if resolve(model).stem_blocks else "patch_embed.proj",
        "classifier": ["head", "head_dist"] if model.distilled else "head",
    }
    if model.rope is not None:
        return eva_twin(model, _mlp_ratio(model), layers)
    return TimmTwin(_architecture(model), _arguments(model), layers)


def _refuse_mixtures(model: ModelConfig) -> None:
    """SwiGLU and parallel blocks are arguments of few of timm's constructors, which fix others."""
    if model.block == "parallel" and (model.layer_scale is None or model.distilled or resolve(model).stem_blocks):
        remedy = (
            "its models with parallel blocks have LayerScale and plain patches: set them so, or choose --format onnx"
        )
        raise refusal(PROGRAM, "block", model.block, remedy)
    if model.mlp == "swiglu":
        others = {
            "variant": bool(resolve(model).stem_blocks),
            "distilled": model.distilled,
            "pool": model.pool == "map",
        }
        for name, there in others.items():
            if there:
                remedy = f"its models with SwiGLU have no {name}: {getattr(model, name)}; choose --format onnx"
                raise refusal(PROGRAM, "mlp", model.mlp, remedy)


def _architecture(model: ModelConfig) -> str:
    """A registered name; for a custom size, the name of a model that takes any size."""
    from timm import is_model

    shape = resolve(model)
    if shape.stem_blocks:
        return {3: "vit_base_r50_s16_224", 4: "vit_large_r50_s32_224"}[len(shape.stem_blocks)]
    if model.distilled:
        return "deit_base_distilled_patch16_224"
    if model.mlp == "swiglu":  # attention pooling there has the blocks' activation, so it is refused above
        return "vit_giant_patch14_dinov2"
    if model.block == "parallel":
        return "vit_pwee_patch16_reg1_gap_256"
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
        "mlp_ratio": _mlp_ratio(model),
        "qkv_bias": model.qkv_bias,
        "class_token": model.class_token,
        "global_pool": {"token": "token", "norm_avg": "avg", "avg_norm": "avg", "map": "map"}[model.pool],
        "fc_norm": model.pool == "avg_norm",
        "act_layer": _ACTIVATIONS[model.mlp if model.mlp == "swiglu" else model.gelu],
        "qk_norm": model.qk_norm,
        "reg_tokens": model.num_registers,
        "pos_embed": "learn" if model.pos_embed == "learned_1d" else "none",
        "no_embed_class": not model.pos_embed_prefix,
    }
    if not shape.stem_blocks:
        arguments["patch_size"] = shape.patch[0]
    if model.norm == "rms_norm":
        arguments["norm_layer"] = "rmsnorm"
    if model.layer_scale is not None or model.mlp == "swiglu":  # 0: none, where the architecture has one
        arguments["init_values"] = model.layer_scale or 0.0
    return arguments


_ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_tanh", "swiglu": "silu"}


def _mlp_ratio(model: ModelConfig) -> float:
    """timm's MLP ratio, whose product with the width timm truncates to an integer; packed SwiGLU has twice the width.

    Eva doubles the width itself.
    """
    shape = resolve(model)
    mlp_dim = shape.mlp_dim * (2 if model.mlp == "swiglu" and model.rope is None else 1)
    embed_dim = shape.embed_dim
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else (mlp_dim + 0.5) / embed_dim


def vit_config(twin: Any, where: Path) -> ModelConfig:
    """The config of ours that computes what one of timm's models computes.

    Args:
        twin: of timm, on any device.
        where: the file that describes it, for errors.

    Raises:
        CheckpointError: none of our models computes the same; the message names the difference.
    """
    from timm.models.eva import Eva
    from timm.models.naflexvit import NaFlexVit

    if type(twin) is Eva:
        config, state = eva_config(twin, where), our_tensors(twin.state_dict())
    elif type(twin) is NaFlexVit:
        _require_plain_blocks(twin, where)
        config, state = naflex_config(twin, where, _shared_options(twin, where)), plain_tensors(twin.state_dict())
    else:
        _require_plain(twin, where)
        config, state = _same_settings(twin, where), twin.state_dict()
    ours = tensor_shapes(config, twin.num_classes)
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if different := sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)):
        name = different[0]
        raise CheckpointError(f"{where}: tensor {name} is {theirs.get(name)} in it, {ours.get(name)} in ours")
    return config


def _require_plain(twin: Any, where: Path) -> None:
    """Modules whose presence the tensors would not show."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    if type(twin) not in (VisionTransformer, VisionTransformerDistilled):
        raise CheckpointError(f"{where}: the model is a {type(twin).__name__}, not a plain VisionTransformer")
    _require_plain_blocks(twin, where)


def _require_plain_blocks(twin: Any, where: Path) -> None:
    """Modules of the blocks whose presence the tensors would not show, and the final norm."""
    from timm.layers import Attention, GluMlp, Mlp
    from timm.models.vision_transformer import Block, ParallelScalingBlock

    for block in twin.blocks:
        if type(block) is ParallelScalingBlock and block.out_proj is None:
            continue
        for name, kinds in (("", (Block,)), ("attn", (Attention,)), ("mlp", (Mlp, GluMlp))):
            module = block.get_submodule(name)
            if type(module) not in kinds:
                wanted = " or ".join(kind.__name__ for kind in kinds)
                raise CheckpointError(f"{where}: it has a {type(module).__name__} instead of a plain {wanted}")
    if isinstance(twin.norm, nn.Identity) and isinstance(twin.fc_norm, nn.Identity):
        raise CheckpointError(f"{where}: it has no norm after the blocks")


def _same_settings(twin: Any, where: Path) -> ModelConfig:
    from timm.models.deit import VisionTransformerDistilled

    block, patch = twin.blocks[0], twin.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise CheckpointError(f"{where}: patches of {patch} pixels, not square ones")
    options: dict[str, Any] = {
        "class_token": twin.has_class_token,
        "distilled": type(twin) is VisionTransformerDistilled,
        "num_registers": twin.num_reg_tokens,
        **_shared_options(twin, where),
        "pos_embed": "none" if twin.pos_embed is None else "learned_1d",
    }
    if twin.pos_embed is not None:
        options["pos_embed_prefix"] = not twin.no_embed_class
    last = getattr(block, "mlp_out_proj", None) or block.mlp.fc2
    stem = getattr(twin.patch_embed, "backbone", None)
    return named_config(
        where,
        Size(twin.embed_dim, len(twin.blocks), last.in_features, getattr(block, "attn", block).num_heads),
        patch=patch[0] if stem is None else _stem_stride(stem, where),
        stem="" if stem is None else "R50+",
        img_size=tuple(twin.patch_embed.img_size),
        **options,
    )


def _shared_options(twin: Any, where: Path) -> dict[str, Any]:
    """The options that pooling, norms and blocks determine."""
    return {"pool": _pool(twin, where), **_norm_options(twin, where), **_block_options(twin, where)}


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
    takes_prefix = twin.global_pool == "map" and twin.pool_include_prefix and twin.num_prefix_tokens
    if twin.global_pool in ("token", "map") and isinstance(twin.fc_norm, nn.Identity) and not takes_prefix:
        return twin.global_pool
    raise CheckpointError(
        f"{where}: global_pool {twin.global_pool!r} with fc_norm {not isinstance(twin.fc_norm, nn.Identity)} and "
        f"pool_include_prefix {twin.pool_include_prefix} is not token, avg or map pooling"
    )


def _block_options(twin: Any, where: Path) -> dict[str, Any]:
    block = twin.blocks[0]
    parallel = hasattr(block, "in_proj")
    attention, scale = (block, block.ls) if parallel else (block.attn, block.ls1)
    options: dict[str, Any] = {"qk_norm": not isinstance(attention.q_norm, nn.Identity)}
    if hasattr(scale, "gamma"):
        options["layer_scale"] = getattr(scale, "init_values", None) or 1e-5
    if parallel:
        return options | {"block": "parallel", "gelu": _gelu_form(block.mlp_act, where)}
    return options | {"qkv_bias": attention.qkv.bias is not None} | _mlp_options(twin, where)


def _mlp_options(twin: Any, where: Path) -> dict[str, Any]:
    from timm.layers import GluMlp

    mlp = twin.blocks[0].mlp
    if not isinstance(mlp, GluMlp):
        return {"gelu": _gelu_form(mlp.act, where)}
    if not isinstance(mlp.act, nn.SiLU) or mlp.gate_last:
        raise CheckpointError(f"{where}: its gated MLP is not SwiGLU with the gate first")
    if twin.attn_pool is not None:
        raise CheckpointError(f"{where}: its attention pooling has an MLP with SiLU, ours with GELU")
    return {"mlp": "swiglu"}


def _gelu_form(activation: nn.Module, where: Path) -> str:
    """The form of GELU that a module computes, determined by evaluating it."""
    probe = torch.linspace(-3, 3, 61)
    found = activation(probe)
    for form, approximate in (("erf", "none"), ("tanh", "tanh")):
        if torch.allclose(found, F.gelu(probe, approximate=approximate), rtol=0, atol=1e-6):
            return form
    raise CheckpointError(f"{where}: the activation {type(activation).__name__} is not GELU")


def _norm_options(twin: nn.Module, where: Path) -> dict[str, Any]:
    from timm.layers import RmsNorm

    named = [(name, module) for name, module in twin.named_modules() if ".backbone." not in name]
    norms = [m for name, m in named if "norm" in name.rpartition(".")[2] and not isinstance(m, nn.Identity)]
    kinds = {"layer_norm": nn.LayerNorm, "rms_norm": RmsNorm}
    found = {
        (next((ours for ours, kind in kinds.items() if isinstance(m, kind)), type(m).__name__), m.eps) for m in norms
    }
    (kind, epsilon), *others = sorted(found)
    if others or kind not in kinds:
        raise CheckpointError(f"{where}: norms with epsilon {sorted(found)}; LayerNorm or RmsNorm with one is read")
    return {"norm": kind, "layer_norm_eps": float(epsilon)}
