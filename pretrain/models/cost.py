"""Costs of a Vision Transformer in closed form: parameters, multiply-adds, FLOPs and bytes. Does not import torch.

Legend: H W pixels · P patch side · N patch tokens · T tokens with prefix · D width · M MLP width · A heads · K classes.
GMAC counts a multiplication and its addition as one; FLOPs count two. MiB and GiB are left to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config.schema.model import ModelConfig
from pretrain.models.footprint import WEIGHT_BYTES, Footprint, Precision
from pretrain.models.variants import (
    NUM_CHANNELS,
    STEM_WIDTH,
    ViTShape,
    is_head_tensor,
    parameter_shapes,
    representation_size,
    resolve,
)

Checkpointing = str  # a policy of cluster.activation_checkpointing: none, full, selective, every_2, every_3, …

_FP32 = 4
_COMPUTE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 2}  # of the operands of matrix products


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model; without the head, its tanh layer is excluded too."""
    shapes = parameter_shapes(model, num_classes)
    return sum(math.prod(shape) for name, shape in shapes.items() if with_head or not is_head_tensor(name))


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of the matrix products in one image's forward pass, attention included.

    Without the head, its tanh layer is excluded too. Norms, softmax, GELU and additions are left out, as in every
    published GMAC figure.
    """
    shape, hidden = resolve(model), representation_size(model)
    tokens, width = shape.num_tokens, shape.embed_dim
    embed = _embed_macs(shape)
    dense = tokens * (4 * width * width + 2 * width * shape.mlp_dim)
    attention = 2 * tokens * tokens * width
    if model.pos_embed == "relative_1d":
        attention += tokens * (2 * tokens - 1) * width
    pool = 0
    if model.pool == "map":
        keys = shape.num_patches * 2 * width * (width + 1)  # k and v of each patch, logits and weighted sum
        pool = keys + 2 * width * width + 2 * width * shape.mlp_dim
    head = width * hidden + hidden * num_classes if hidden else width * num_classes
    head *= shape.num_patches if model.head == "dense" else 1
    body = embed + shape.depth * (dense + attention) + pool
    return body + head * (2 if model.distilled else 1) if with_head else body


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, times 3 for forward and backward.

    Recomputation by activation checkpointing is not useful work and is not counted.
    """
    return num_images * 3 * 2 * forward_macs(model, num_classes)


def activation_bytes(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: Checkpointing = "none"
) -> int:
    """Bytes per image that the forward pass keeps for the backward pass (eager mode, fused attention).

    Counted once: q, k and v share a tensor, as do the attention's output and its projection's input. Drop-path scales
    and biases are negligible; dropout masks are one byte an element, as CUDA keeps them. Relative terms need a gradient
    themselves, so that attention is taken as the unfused kernel, with its (A, T, T) products.
    """
    shape = resolve(model)
    per_block = {
        "none": _block_bytes(shape, model, precision),
        "full": _residual_bytes(shape, precision),
        "selective": _selective_bytes(shape, model, precision),
    }
    recomputed = num_recomputed(shape.depth, checkpointing)
    policy = "full" if checkpointing.startswith("every_") else checkpointing
    blocks = recomputed * per_block[policy] + (shape.depth - recomputed) * per_block["none"]
    return blocks + _ends_bytes(shape, model, num_classes, precision)


def working_bytes(model: ModelConfig, *, precision: Precision, checkpointing: Checkpointing = "none") -> int:
    """Bytes per image that the backward pass needs at once in addition to ``activation_bytes``.

    The gradients around one block's MLP (two of its hidden width, two of the residual stream) and, with full
    checkpointing, the recomputed inside of one block.
    """
    shape = resolve(model)
    hidden = 2 * shape.num_tokens * shape.mlp_dim * _COMPUTE_BYTES[precision]
    recomputed = 0
    if checkpointing != "none":
        recomputed = _block_bytes(shape, model, precision)
    if checkpointing == "selective":
        recomputed -= _selective_bytes(shape, model, precision)
    return hidden + 2 * _residual_bytes(shape, precision) + recomputed


def num_recomputed(depth: int, checkpointing: Checkpointing) -> int:
    """Blocks that are at least partly recomputed: all, none or every k-th."""
    if checkpointing.startswith("every_"):
        return depth // int(checkpointing.removeprefix("every_"))
    return 0 if checkpointing == "none" else depth


def recomputed_macs(model: ModelConfig, checkpointing: Checkpointing) -> int:
    """Multiply-adds per image that the backward pass recomputes; ``training_flops`` excludes them."""
    shape = resolve(model)
    if checkpointing == "selective":
        return 0
    tokens, width = shape.num_tokens, shape.embed_dim
    block = tokens * (4 * width * width + width * shape.mlp_dim) + 2 * tokens * tokens * width  # fc2 is not recomputed
    return num_recomputed(shape.depth, checkpointing) * block


def _embed_macs(shape: ViTShape) -> int:
    """The patch convolution, or a hybrid's ResNet and its 1 × 1 convolution."""
    if not shape.stem_blocks:
        return shape.num_patches * NUM_CHANNELS * math.prod(shape.patch) * shape.embed_dim
    layers = stem_convolutions(shape)
    return sum(layer.macs for layer in layers) + shape.num_patches * layers[-1].out * shape.embed_dim


@dataclass(frozen=True)
class StemConvolution:
    """One convolution of a hybrid's ResNet; ``size`` is (height, width) of its output."""

    into: int
    out: int
    kernel: int
    stride: int
    size: tuple[int, int]
    has_relu: bool = True

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.into * self.out * self.kernel**2 * math.prod(self.size)


def stem_convolutions(shape: ViTShape) -> list[StemConvolution]:
    """The convolutions of a hybrid's ResNet, in the order of the tensors."""
    size = _halved(shape.img_size)
    layers, size = [StemConvolution(NUM_CHANNELS, STEM_WIDTH, 7, 2, size)], _halved(size)  # the maximum halves again
    into = STEM_WIDTH
    for stage, num_blocks in enumerate(shape.stem_blocks):
        middle = STEM_WIDTH * 2**stage
        for index in range(num_blocks):
            stride = 2 if stage and not index else 1
            before, size = size, _halved(size) if stride == 2 else size
            if not index:
                layers.append(StemConvolution(into, 4 * middle, 1, stride, size, has_relu=False))
            layers.append(StemConvolution(into, middle, 1, 1, before))
            layers.append(StemConvolution(middle, middle, 3, stride, size))
            layers.append(StemConvolution(middle, 4 * middle, 1, 1, size))
            into = 4 * middle
    return layers


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 2), -(-size[1] // 2)


def _residual_bytes(shape: ViTShape, precision: Precision) -> int:
    return shape.num_tokens * shape.embed_dim * WEIGHT_BYTES[precision]


def _block_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    tokens, width = shape.num_tokens, shape.embed_dim
    # The norms read the residual stream twice; in the compute type: two norms' outputs, q k v, the attention's output,
    # and the hidden layer before and after GELU.
    residual = 2 * _residual_bytes(shape, precision)
    compute = tokens * (6 * width + 2 * shape.mlp_dim) * _COMPUTE_BYTES[precision]
    statistics = _FP32 * 2 * 2 * tokens  # mean and 1/std of two norms
    masks = tokens * (2 * width + shape.mlp_dim) if model.dropout else 0
    if model.layer_scale is not None:  # the branches before they are scaled
        compute += 2 * tokens * width * _COMPUTE_BYTES[precision]
    return residual + compute + statistics + masks + _attention_extra_bytes(shape, model, precision)


def _attention_extra_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    """Inside attention, besides q k v and the output: logsumexp or products, and modified queries and keys."""
    tokens, width, heads = shape.num_tokens, shape.embed_dim, shape.num_heads
    compute = _COMPUTE_BYTES[precision]
    extra = _FP32 * heads * tokens
    if model.qk_norm or model.pos_embed == "rope_2d":  # what attention reads is no longer a part of q k v
        extra += 2 * tokens * width * compute
    if model.qk_norm:
        extra += _FP32 * 2 * 2 * tokens * heads
        extra += 2 * tokens * width * _FP32 if precision == "autocast" else 0  # upcast for fp32 weights
    if model.pos_embed.startswith("relative"):
        extra += _relative_bytes(shape, model, precision)
    return extra


def _relative_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    """Attention unfused, in fp32: copies of q, k and v, and the probabilities; for relative keys q and its products."""
    tokens, width, heads, compute = shape.num_tokens, shape.embed_dim, shape.num_heads, _COMPUTE_BYTES[precision]
    extra = 3 * tokens * width * (_FP32 - compute) + _FP32 * heads * tokens * (tokens - 1)
    if model.pos_embed == "relative_1d":
        extra += compute * tokens * (width + heads * (2 * tokens - 1))
    return extra


def _selective_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    """A block's input, and the outputs of qkv, attention (and logsumexp), proj, fc1 and fc2."""
    tokens, width = shape.num_tokens, shape.embed_dim
    compute = tokens * (6 * width + shape.mlp_dim) * _COMPUTE_BYTES[precision]
    attention = _FP32 * shape.num_heads * tokens
    if model.pos_embed.startswith("relative"):  # unfused, in fp32: logits and weighted sum
        attention *= tokens
        attention += tokens * width * (_FP32 - _COMPUTE_BYTES[precision])
    if model.pos_embed == "relative_1d":
        attention += _COMPUTE_BYTES[precision] * shape.num_heads * tokens * (2 * tokens - 1)
    return _residual_bytes(shape, precision) + compute + attention


def _ends_bytes(shape: ViTShape, model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Image, final norm, fp32 head, and for the loss the log-probabilities (or logits) and targets.

    A dense head keeps the tokens in fp32, its normed ones among them, and for the loss the log-probabilities of every
    pixel and int64 classes.
    """
    image = NUM_CHANNELS * math.prod(shape.img_size) * _COMPUTE_BYTES[precision]
    pool_first = model.pool == "avg_norm"
    norm = (
        _FP32 * (shape.embed_dim + 2)
        if pool_first
        else _residual_bytes(shape, precision) + _FP32 * 2 * shape.num_tokens
    )
    hidden = representation_size(model) or 0
    head = _FP32 * (shape.embed_dim + 2 * hidden)
    outputs = 2 * _FP32 * num_classes
    if model.head == "dense":
        head = _FP32 * shape.num_patches * shape.embed_dim * (2 if pool_first else 1)
        outputs = (_FP32 * num_classes + 8) * math.prod(shape.img_size)
    masks = shape.num_tokens * shape.embed_dim if model.dropout else 0
    pool = 0
    if model.pool == "map":  # the patches, their keys and values, and the MLP of one token
        pool = 3 * shape.num_patches * shape.embed_dim + 6 * shape.embed_dim + 2 * shape.mlp_dim
    stem = _stem_bytes(shape, precision) if shape.stem_blocks else 0
    return image + stem + norm + head + masks + pool * _COMPUTE_BYTES[precision] + outputs


def _stem_bytes(shape: ViTShape, precision: Precision) -> int:
    """Feature maps of a hybrid: inputs of norms, outputs of ReLUs, and padded copies."""
    elements = 0
    layers = stem_convolutions(shape)
    for layer in layers:
        elements += (1 + layer.has_relu) * layer.out * math.prod(layer.size)
        if layer.kernel > 1:
            elements += layer.into * math.prod((side - 1) * layer.stride + layer.kernel for side in layer.size)
    pooled = _halved(layers[0].size)
    padded = math.prod(2 * side + 1 for side in pooled)  # of the maximum, whose indices are int64
    elements += STEM_WIDTH * (math.prod(pooled) + padded)
    return elements * _COMPUTE_BYTES[precision] + 8 * STEM_WIDTH * math.prod(pooled)


def footprint(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: Checkpointing = "none"
) -> Footprint:
    """The numbers of the model that decide its memory. Copies: bf16's fp32 copy of the head, autocast's bf16 copies."""
    return Footprint(
        parameters=num_parameters(model, num_classes),
        largest_unit=_block_parameters(resolve(model)),
        kept=activation_bytes(model, num_classes, precision=precision, checkpointing=checkpointing),
        working=max(
            working_bytes(model, precision=precision, checkpointing=checkpointing), _loss_bytes(model, num_classes)
        ),
        copies=_cast_bytes(model, num_classes, precision),
    )


def _loss_bytes(model: ModelConfig, num_classes: int) -> int:
    """Bytes per image at the start of the backward pass: gradients of log-probabilities and logits of every pixel."""
    pixels = math.prod(resolve(model).img_size) if model.head == "dense" else 0
    return 2 * _FP32 * num_classes * pixels


def _block_parameters(shape: ViTShape) -> int:
    return 4 * shape.embed_dim**2 + 2 * shape.embed_dim * shape.mlp_dim + 9 * shape.embed_dim + shape.mlp_dim


def _cast_bytes(model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Copies of the weights in another type that the backward pass reads."""
    if precision == "autocast":
        return _COMPUTE_BYTES[precision] * num_parameters(model, num_classes, with_head=False)
    head = num_parameters(model, num_classes) - num_parameters(model, num_classes, with_head=False)
    return _FP32 * head if precision == "bf16" else 0
