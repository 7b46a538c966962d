"""Costs of one Transformer block in closed form: multiply-adds, and bytes kept for the backward pass. Without torch.

Legend: D width · M MLP width · A heads · T tokens with prefix, of a training image.
"""

from __future__ import annotations

import math

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.protocol import FP32, WEIGHT_BYTES, Precision
from pretrain.models.tensor_shapes import block_shapes
from pretrain.models.variants import ViTShape, resolve

COMPUTE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 2}  # of the operands of matrix products


def block_macs(model: ModelConfig) -> int:
    """Multiply-adds of the matrix products of one block on one image: its dense layers, and attention."""
    shape = resolve(model)
    tokens, width = shape.num_trained_tokens, shape.embed_dim
    dense = sum(math.prod(dims) for name, dims in block_shapes(model).items() if name.endswith(".weight") and dims[1:])
    attention = 2 * tokens * width
    if model.pos_embed == "relative_1d":
        attention += (2 * tokens - 1) * width
    return tokens * (dense + attention)


def residual_bytes(shape: ViTShape, precision: Precision) -> int:
    """The tokens of one image between two blocks."""
    return shape.num_trained_tokens * shape.embed_dim * WEIGHT_BYTES[precision]


def norm_statistics(model: ModelConfig) -> int:
    """Numbers that a norm keeps of each token: mean and 1 / std, or 1 / root mean square."""
    return 2 if model.norm == "layer_norm" else 1


def block_bytes(model: ModelConfig, precision: Precision) -> int:
    """Bytes that one block keeps of one image: everything that its backward pass reads."""
    shape = resolve(model)
    tokens, width, hidden = shape.num_trained_tokens, shape.embed_dim, shape.mlp_dim
    if model.block == "parallel":
        return _parallel_bytes(model, precision)
    # The norms read the residual stream twice; in the compute type: two norms' outputs, q k v, the attention's output,
    # and the hidden layer before and after GELU; of SwiGLU both halves before, the gate after SiLU, and the product.
    compute = 6 * width + hidden * (4 if model.mlp == "swiglu" else 2)
    if model.layer_scale is not None:  # the branches before they are scaled
        compute += 2 * width
    if model.gated_attention:  # the gate, and the gated attention; autocast casts the norm's output for it once more
        compute += (3 if precision == "autocast" else 2) * width
    masks = tokens * (2 * width + hidden) if model.dropout else 0
    statistics = FP32 * 2 * norm_statistics(model) * tokens
    kept = 2 * residual_bytes(shape, precision) + tokens * compute * COMPUTE_BYTES[precision]
    return kept + statistics + masks + _attention_extra_bytes(shape, model, precision)


def _parallel_bytes(model: ModelConfig, precision: Precision) -> int:
    """One norm's input and output, the joint hidden layer and q k v, the attention's output, and after GELU."""
    shape = resolve(model)
    tokens, width, hidden = shape.num_trained_tokens, shape.embed_dim, shape.mlp_dim
    compute = 5 * width + 2 * hidden + (width if model.layer_scale is not None else 0)
    masks = tokens * hidden if model.dropout else 0
    kept = residual_bytes(shape, precision) + tokens * compute * COMPUTE_BYTES[precision]
    return kept + FP32 * norm_statistics(model) * tokens + masks + _attention_extra_bytes(shape, model, precision)


def selective_bytes(model: ModelConfig, precision: Precision) -> int:
    """A block's input, and the outputs of qkv, attention (and logsumexp), gate, proj, fc1 and fc2."""
    shape = resolve(model)
    tokens, width = shape.num_trained_tokens, shape.embed_dim
    hidden = shape.mlp_dim * (2 if model.mlp == "swiglu" else 1)
    compute = tokens * (6 * width + hidden + width * model.gated_attention) * COMPUTE_BYTES[precision]
    attention = FP32 * shape.num_heads * tokens
    if model.pos_embed.startswith("relative"):  # unfused, in fp32: logits and weighted sum
        attention *= tokens
        attention += tokens * width * (FP32 - COMPUTE_BYTES[precision])
    if model.pos_embed == "relative_1d":
        attention += COMPUTE_BYTES[precision] * shape.num_heads * tokens * (2 * tokens - 1)
    return residual_bytes(shape, precision) + compute + attention


def _attention_extra_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    """Inside attention, besides q k v and the output: logsumexp or products, and modified queries and keys."""
    tokens, width, heads = shape.num_trained_tokens, shape.embed_dim, shape.num_heads
    compute = COMPUTE_BYTES[precision]
    extra = FP32 * heads * tokens
    if model.qk_norm or model.rope is not None:  # what attention reads is no longer a part of q k v
        extra += 2 * tokens * width * compute
    if model.qk_norm:
        extra += FP32 * 2 * norm_statistics(model) * tokens * heads
        extra += 2 * tokens * width * FP32 if precision == "autocast" else 0  # upcast for fp32 weights
    if model.rope == "mixed":  # the gradient of learned angles needs queries and keys turned by 90°, and not
        extra += 2 * tokens * width * compute * (2 if model.qk_norm else 1)
    if model.pos_embed.startswith("relative"):
        extra += _relative_bytes(shape, model, precision)
    return extra


def _relative_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    """Attention unfused, in fp32: copies of q, k and v, and the probabilities; for relative keys q and its products."""
    tokens, width, heads, compute = shape.num_trained_tokens, shape.embed_dim, shape.num_heads, COMPUTE_BYTES[precision]
    extra = 3 * tokens * width * (FP32 - compute) + FP32 * heads * tokens * (tokens - 1)
    if model.pos_embed == "relative_1d":
        extra += compute * tokens * (width + heads * (2 * tokens - 1))
    return extra
