"""Names and shapes of the parameters of our Vision Transformers, in closed form. Does not import torch.

Legend: P patch side · D width · A heads · E head width · L blocks · T tokens with prefix · K classes.
"""

from __future__ import annotations

import re

from pretrain.config.schema.model import ModelConfig
from pretrain.models.variants import (
    NUM_CHANNELS,
    STEM_WIDTH,
    ViTShape,
    decoder_model,
    placement,
    representation_size,
    resolve,
)

Shapes = dict[str, tuple[int, ...]]

DECODER = "decoder."  # prefix of the tensors of a masked autoencoder's decoder


def parameter_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter, in the order and with the names of the state dict (timm's).

    The tanh layer of the pretraining head is ``pre_logits.fc``, as timm named it while it had one.
    """
    shape, width, where = resolve(model), resolve(model).embed_dim, placement(model)
    tensors: dict[str, tuple[int, ...]] = {}
    if model.class_token:
        tensors["cls_token"] = (1, 1, width)
    if model.distilled:
        tensors["dist_token"] = (1, 1, width)
    if model.num_registers:
        tensors["reg_token"] = (1, model.num_registers, width)
    if model.mask_token:
        tensors["mask_token"] = (1, 1, width)
    if where in ("stem", "every_layer_shared"):
        tensors |= _prefixed("pos_embed", _table_shapes(model, shape))
    tensors |= _prefixed("patch_embed.", _patch_embed_shapes(shape))
    if where == "every_layer_shared":
        tensors |= _prefixed("shared_rel_pos.", _relative_shapes(model, shape))
    if model.rope == "mixed":
        tensors["rope.freqs"] = mixed_rope_shape(shape)
    block = block_shapes(model)
    for index in range(shape.depth):
        tensors |= _prefixed(f"blocks.{index}.", block)
    tensors |= _norm("fc_norm" if model.pool == "avg_norm" else "norm", width, model)
    if model.pool == "map":
        tensors |= _prefixed("attn_pool.", _attn_pool_shapes(model, shape))
    if model.decoder is not None:
        return tensors | _prefixed(DECODER, _decoder_shapes(model, width))
    hidden = representation_size(model)
    if hidden is not None:
        tensors |= {"pre_logits.fc.weight": (hidden, width), "pre_logits.fc.bias": (hidden,)}
    second = {"head_dist": model.distilled, "head_patches": model.head == "pooled_and_patches"}
    for head in ("head", *(name for name, is_there in second.items() if is_there)):
        tensors |= {f"{head}.weight": (num_classes, hidden or width), f"{head}.bias": (num_classes,)}
    return tensors


def _decoder_shapes(model: ModelConfig, encoder_width: int) -> Shapes:
    """The decoder of a masked autoencoder, which has no head."""
    decoder = decoder_model(model)
    shape, block = resolve(decoder), block_shapes(decoder)
    tensors: Shapes = {"mask_token": (1, 1, shape.embed_dim)}
    for index in range(shape.depth):
        tensors |= _prefixed(f"blocks.{index}.", block)
    tensors |= _norm("norm", shape.embed_dim, decoder)
    tensors |= _dense("embed", shape.embed_dim, encoder_width)
    return tensors | _dense("pred", num_pixels(shape), shape.embed_dim)


def num_pixels(shape: ViTShape) -> int:
    """Numbers that describe the pixels of one patch."""
    return NUM_CHANNELS * shape.patch[0] * shape.patch[1]


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: dims for name, dims in shapes.items()}


def _dense(name: str, out: int, into: int, *, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int, model: ModelConfig) -> Shapes:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if model.norm == "layer_norm" else {})


def num_position_rows(model: ModelConfig) -> int:
    """Rows of a learned 1-D position embedding: one per token, or per patch only."""
    shape = resolve(model)
    return shape.num_tokens if model.pos_embed_prefix else shape.num_patches


def _table_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    """One learned table that is added to tokens; keys are the suffixes after ``pos_embed``."""
    if model.pos_embed == "learned_1d":
        return {"": (1, num_position_rows(model), shape.embed_dim)}
    if model.pos_embed == "learned_2d":
        half = shape.embed_dim // 2
        return {".row": (1, shape.grid[0], half), ".column": (1, shape.grid[1], half)}
    return {}


def num_relative_rows(shape: ViTShape) -> int:
    """Rows of a relative bias: one per 2-D offset of two patches, and three for pairs with prefix tokens."""
    return (2 * shape.grid[0] - 1) * (2 * shape.grid[1] - 1) + 3 * (shape.num_prefix_tokens > 0)


def mixed_rope_shape(shape: ViTShape) -> tuple[int, int, int, int]:
    """Frequencies of column and row, for each block, head and pair of channels: (2, L, A, E/2)."""
    return 2, shape.depth, shape.num_heads, shape.embed_dim // shape.num_heads // 2


def _relative_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    if model.pos_embed == "relative_bias":
        return {"relative_position_bias_table": (num_relative_rows(shape), shape.num_heads)}
    if model.pos_embed == "relative_1d":
        return {"relative_keys": (2 * shape.num_tokens - 1, shape.embed_dim // shape.num_heads)}
    return {}


def _patch_embed_shapes(shape: ViTShape) -> Shapes:
    if not shape.stem_blocks:
        return {"proj.weight": (shape.embed_dim, NUM_CHANNELS, *shape.patch), "proj.bias": (shape.embed_dim,)}
    tensors = _resnet_shapes(shape.stem_blocks)
    channels = 4 * STEM_WIDTH * 2 ** (len(shape.stem_blocks) - 1)
    return _prefixed("backbone.", tensors) | {
        "proj.weight": (shape.embed_dim, channels, 1, 1),
        "proj.bias": (shape.embed_dim,),
    }


def _group_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resnet_shapes(stem_blocks: tuple[int, ...]) -> Shapes:
    tensors: Shapes = {"stem.conv.weight": (STEM_WIDTH, NUM_CHANNELS, 7, 7), **_group_norm("stem.norm", STEM_WIDTH)}
    into = STEM_WIDTH
    for stage, num_blocks in enumerate(stem_blocks):
        middle = STEM_WIDTH * 2**stage
        for index in range(num_blocks):
            block: Shapes = {}
            if index == 0:
                block |= {
                    "downsample.conv.weight": (4 * middle, into, 1, 1),
                    **_group_norm("downsample.norm", 4 * middle),
                }
            block |= {"conv1.weight": (middle, into, 1, 1), **_group_norm("norm1", middle)}
            block |= {"conv2.weight": (middle, middle, 3, 3), **_group_norm("norm2", middle)}
            block |= {"conv3.weight": (4 * middle, middle, 1, 1), **_group_norm("norm3", 4 * middle)}
            tensors |= _prefixed(f"stages.{stage}.blocks.{index}.", block)
            into = 4 * middle
    return tensors


def block_shapes(model: ModelConfig) -> Shapes:
    """Name → shape of every parameter of one block."""
    shape = resolve(model)
    return _parallel_shapes(model, shape) if model.block == "parallel" else _sequential_shapes(model, shape)


def _parallel_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    width, head_width = shape.embed_dim, shape.embed_dim // shape.num_heads
    head_norms = _norm("q_norm", head_width, model) | _norm("k_norm", head_width, model)
    return {
        **_norm("in_norm", width, model),
        **_dense("in_proj", shape.mlp_dim + 3 * width, width),
        **(head_norms if model.qk_norm else {}),
        **_dense("attn_out_proj", width, width),
        **_dense("mlp_out_proj", width, shape.mlp_dim),
        **({"ls.gamma": (width,)} if model.layer_scale is not None else {}),
    }


def _sequential_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    width, head_width = shape.embed_dim, shape.embed_dim // shape.num_heads
    own = placement(model) == "every_layer"
    scale = [{f"ls{index}.gamma": (width,)} if model.layer_scale is not None else {} for index in (1, 2)]
    head_norms = _norm("attn.q_norm", head_width, model) | _norm("attn.k_norm", head_width, model)
    return {
        **(_prefixed("pos_embed", _table_shapes(model, shape)) if own else {}),
        **_norm("norm1", width, model),
        **_dense("attn.qkv", 3 * width, width, bias=model.qkv_bias),
        **(head_norms if model.qk_norm else {}),
        **(_prefixed("attn.rel_pos.", _relative_shapes(model, shape)) if own else {}),
        **(_dense("attn.gate", width, width, bias=model.qkv_bias) if model.gated_attention else {}),
        **_dense("attn.proj", width, width),
        **scale[0],
        **_norm("norm2", width, model),
        **_dense("mlp.fc1", shape.mlp_dim * (2 if model.mlp == "swiglu" else 1), width),
        **_dense("mlp.fc2", width, shape.mlp_dim),
        **scale[1],
    }


def _attn_pool_shapes(model: ModelConfig, shape: ViTShape) -> Shapes:
    width = shape.embed_dim
    return {
        "latent": (1, 1, width),
        **_dense("q", width, width),
        **_dense("kv", 2 * width, width),
        **_dense("proj", width, width),
        **_norm("norm", width, model),
        **_dense("mlp.fc1", shape.mlp_dim, width),
        **_dense("mlp.fc2", width, shape.mlp_dim),
    }


def is_head_tensor(name: str) -> bool:
    """Whether a tensor belongs to the head, which a new task replaces: its tanh layer, or a decoder in its place."""
    return name.startswith(("head.", "head_dist.", "head_patches.", "pre_logits.", DECODER))


_STEM = re.compile(r"(cls_token|dist_token|reg_token|mask_token|pos_embed|patch_embed|rope)")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def layer_id(name: str, depth: int) -> int:
    """0 for tokens, all positions and patches; i + 1 for block i, ``depth`` for the norm after it; else the head's.

    A decoder counts as a head.

    Args:
        name: the parameter's.
        depth: number of blocks.

    Source: timm's ``VisionTransformer.group_matcher`` (BEiT's rule, but the final norm goes with the last block).
    """
    if _STEM.match(name):
        return 0
    block = _BLOCK.match(name)
    if block is not None:
        return int(block[1]) + 1
    return depth if name.startswith("norm.") else depth + 1
