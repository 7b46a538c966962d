"""Costs of a Vision Transformer in closed form: parameters, multiply-adds, FLOPs and bytes. Does not import torch.

Legend: H W pixels · P patch side · N patch tokens · T tokens with prefix · D width · M MLP width · A heads · K classes.
GMAC counts a multiplication and its addition as one; FLOPs count two. MiB and GiB are left to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pretrain.config.schema.model import ModelConfig
from pretrain.models.block_cost import (
    COMPUTE_BYTES,
    block_bytes,
    block_macs,
    norm_statistics,
    residual_bytes,
    selective_bytes,
)
from pretrain.models.families.protocol import FP32, Footprint, Precision
from pretrain.models.tensor_shapes import DECODER, block_shapes, is_head_tensor, num_pixels, parameter_shapes
from pretrain.models.variants import NUM_CHANNELS, STEM_WIDTH, ViTShape, decoder_model, representation_size, resolve

Checkpointing = str  # a policy of cluster.activation_checkpointing: none, full, selective, every_2, every_3, …


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model; without the head, its tanh layer is excluded too."""
    shapes = parameter_shapes(model, num_classes)
    return sum(math.prod(shape) for name, shape in shapes.items() if with_head or not is_head_tensor(name))


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of the matrix products in one training image's forward pass, attention included.

    Patches that ``model.patch_drop`` leaves out are counted in the embedding only. Without the head, its tanh layer is
    excluded too. Norms, softmax, GELU and additions are left out, as in every published GMAC figure.
    """
    shape, hidden = resolve(model), representation_size(model)
    width, pool = shape.embed_dim, 0
    if model.pool == "map":
        keys = shape.num_kept * 2 * width * (width + 1)  # k and v of each patch, logits and weighted sum
        pool = keys + 2 * width * width + 2 * width * shape.mlp_dim
    head = width * hidden + hidden * num_classes if hidden else width * num_classes
    head *= {"pooled": 1, "pooled_and_patches": 1 + shape.num_patches}.get(model.head, shape.num_patches)
    body = _embed_macs(shape) + shape.depth * block_macs(model) + pool
    if model.decoder is not None:
        return body + _decoder_macs(model) if with_head else body
    return body + head * (2 if model.distilled else 1) if with_head else body


def weight_macs(model: ModelConfig, num_classes: int) -> dict[str, int]:
    """Name of a dense or convolution weight → multiply-adds of its products in one image's forward pass.

    Those of a hybrid's ResNet are counted with its 1 × 1 convolution, ``patch_embed.proj``.
    """
    shape, found = resolve(model), {}
    of_decoder = resolve(decoder_model(model)).num_tokens if model.decoder is not None else 0
    for name, dimensions in parameter_shapes(model, num_classes).items():
        if not name.endswith(".weight") or len(dimensions) < 2 or name.startswith("patch_embed."):
            continue
        rows = 1
        if name.startswith(("blocks.", f"{DECODER}embed.")):
            rows = shape.num_trained_tokens
        elif name.startswith(DECODER):
            rows = shape.num_patches if name.startswith(f"{DECODER}pred.") else of_decoder
        elif name.startswith(("attn_pool.kv", "head_patches.")) or model.head in ("dense", "patches"):
            rows = shape.num_kept
        found[name] = rows * math.prod(dimensions)
    return {"patch_embed.proj.weight": _embed_macs(shape)} | found


def activation_bytes(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: Checkpointing = "none"
) -> int:
    """Bytes per image that the forward pass keeps for the backward pass (eager mode, fused attention).

    Counted once: q, k and v share a tensor, as do the attention's output and its projection's input. Drop-path scales
    and biases are negligible; dropout masks are one byte an element, as CUDA keeps them. Relative terms need a gradient
    themselves, so that attention is taken as the unfused kernel, with its (A, T, T) products.
    """
    shape = resolve(model)
    ends = _ends_bytes(shape, model, num_classes, precision)
    if model.decoder is not None:
        ends += _decoder_bytes(model, precision, checkpointing)
    return _blocks_bytes(model, precision, checkpointing) + ends


def _blocks_bytes(model: ModelConfig, precision: Precision, checkpointing: Checkpointing) -> int:
    shape = resolve(model)
    per_block = {
        "none": block_bytes(model, precision),
        "full": residual_bytes(shape, precision),
        "selective": selective_bytes(model, precision),
    }
    recomputed = num_recomputed(shape.depth, checkpointing)
    policy = "full" if checkpointing.startswith("every_") else checkpointing
    return recomputed * per_block[policy] + (shape.depth - recomputed) * per_block["none"]


def working_bytes(model: ModelConfig, *, precision: Precision, checkpointing: Checkpointing = "none") -> int:
    """Bytes per image that the backward pass needs at once in addition to ``activation_bytes``.

    The gradients around one block's MLP (two of its hidden width, two of the residual stream) and, with full
    checkpointing, the recomputed inside of one block.
    """
    shape = resolve(model)
    hidden = 2 * shape.num_trained_tokens * shape.mlp_dim * COMPUTE_BYTES[precision]
    recomputed = 0
    if checkpointing != "none":
        recomputed = block_bytes(model, precision)
    if checkpointing == "selective":
        recomputed -= selective_bytes(model, precision)
    return hidden + 2 * residual_bytes(shape, precision) + recomputed


def num_recomputed(depth: int, checkpointing: Checkpointing) -> int:
    """Blocks that are at least partly recomputed: all, none or every k-th."""
    if checkpointing.startswith("every_"):
        return depth // int(checkpointing.removeprefix("every_"))
    return 0 if checkpointing == "none" else depth


def recomputed_macs(model: ModelConfig, checkpointing: Checkpointing) -> int:
    """Multiply-adds per image that the backward pass recomputes; ``registry.training_flops`` excludes them."""
    shape = resolve(model)
    if checkpointing == "selective":
        return 0
    last = shape.num_trained_tokens * shape.embed_dim * shape.mlp_dim  # the MLP's second layer is not recomputed
    of_decoder = 0 if model.decoder is None else recomputed_macs(decoder_model(model), checkpointing)
    return num_recomputed(shape.depth, checkpointing) * (block_macs(model) - last) + of_decoder


def _decoder_macs(model: ModelConfig) -> int:
    """The layer before its blocks, the blocks on all tokens, and the prediction of every patch."""
    decoder, encoder = decoder_model(model), resolve(model)
    shape = resolve(decoder)
    ends = encoder.num_trained_tokens * encoder.embed_dim + shape.num_patches * num_pixels(shape)
    return ends * shape.embed_dim + shape.depth * block_macs(decoder)


def _embed_macs(shape: ViTShape) -> int:
    """The patch convolution, or a hybrid's ResNet and its 1 × 1 convolution."""
    if not shape.stem_blocks:
        return shape.num_patches * NUM_CHANNELS * math.prod(shape.patch) * shape.embed_dim
    layers = stem_convolutions(shape)
    return sum(layer.macs for layer in layers) + shape.num_patches * layers[-1].out * shape.embed_dim


def _decoder_bytes(model: ModelConfig, precision: Precision, checkpointing: Checkpointing) -> int:
    """Its blocks; the tokens that it embeds; norm, fp32 input of the prediction, and the errors of the pixels."""
    decoder, encoder = decoder_model(model), resolve(model)
    shape = resolve(decoder)
    embedded = encoder.num_trained_tokens * encoder.embed_dim * COMPUTE_BYTES[precision]
    norm = residual_bytes(shape, precision) + FP32 * norm_statistics(model) * shape.num_tokens
    pixels = FP32 * shape.num_patches * (shape.embed_dim + num_pixels(shape))
    return _blocks_bytes(decoder, precision, checkpointing) + embedded + norm + pixels


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


def _ends_bytes(shape: ViTShape, model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Image, final norm, fp32 head, and for the loss the log-probabilities (or logits) and targets.

    A head on patches keeps the tokens in fp32, its normed ones among them, and for the loss its outputs and the
    targets; a dense head the log-probabilities of every pixel and int64 classes.
    """
    image = NUM_CHANNELS * math.prod(shape.img_size) * COMPUTE_BYTES[precision]
    pool_first, statistics = model.pool == "avg_norm", FP32 * norm_statistics(model)
    norm = residual_bytes(shape, precision) + statistics * shape.num_trained_tokens
    if pool_first:
        norm = FP32 * shape.embed_dim + statistics
    hidden = representation_size(model) or 0
    head = 0 if model.decoder is not None else FP32 * (shape.embed_dim + 2 * hidden)
    outputs = 0 if model.decoder is not None else 2 * FP32 * num_classes
    if model.head != "pooled":
        head = FP32 * shape.num_patches * (shape.embed_dim * (2 if pool_first else 1) + hidden)
        outputs *= shape.num_patches
    if model.head == "pooled_and_patches":
        head, outputs = head + FP32 * shape.embed_dim, outputs + 2 * FP32 * num_classes
    if model.head == "dense":
        outputs = (FP32 * num_classes + 8) * math.prod(shape.img_size)
    masks = shape.num_tokens * shape.embed_dim if model.dropout else 0
    pool = 0
    if model.pool == "map":  # the patches, their keys and values, and the MLP of one token
        pool = 3 * shape.num_kept * shape.embed_dim + 6 * shape.embed_dim + 2 * shape.mlp_dim
    stem = _stem_bytes(shape, precision) if shape.stem_blocks else 0
    if model.rope == "axial" and model.patch_drop:  # cosines and sines of the tokens that each image keeps
        stem += 2 * FP32 * shape.num_trained_tokens * shape.embed_dim // shape.num_heads
    return image + stem + norm + head + masks + pool * COMPUTE_BYTES[precision] + outputs


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
    return elements * COMPUTE_BYTES[precision] + 8 * STEM_WIDTH * math.prod(pooled)


def footprint(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: Checkpointing = "none"
) -> Footprint:
    """The numbers of the model that decide its memory. Copies: bf16's fp32 copy of the head, autocast's bf16 copies."""
    return Footprint(
        parameters=num_parameters(model, num_classes),
        largest_unit=max(_block_parameters(each) for each in _parts(model)),
        kept=activation_bytes(model, num_classes, precision=precision, checkpointing=checkpointing),
        working=max(
            *(working_bytes(each, precision=precision, checkpointing=checkpointing) for each in _parts(model)),
            _loss_bytes(model, num_classes),
        ),
        copies=_cast_bytes(model, num_classes, precision),
    )


def _parts(model: ModelConfig) -> list[ModelConfig]:
    """The model, and its decoder as a model of its own."""
    return [model] if model.decoder is None else [model, decoder_model(model)]


def _block_parameters(model: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in block_shapes(model).values())


def _loss_bytes(model: ModelConfig, num_classes: int) -> int:
    """Bytes per image at the start of the backward pass: gradients of log-probabilities and logits of every place.

    A decoder's: of the errors and the predictions of every patch.
    """
    shape = resolve(model)
    if model.decoder is not None:
        return 2 * FP32 * shape.num_patches * num_pixels(shape)
    places = {"pooled": 0, "patches": shape.num_patches, "dense": math.prod(shape.img_size)}
    return 2 * FP32 * num_classes * places[model.head]


def _cast_bytes(model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Copies of the weights in another type that the backward pass reads."""
    shapes = parameter_shapes(model, num_classes)
    in_fp32 = {name for name in shapes if is_head_tensor(name)}
    if model.decoder is not None:
        in_fp32 = {name for name in shapes if name.startswith(f"{DECODER}pred.")}
    head = sum(math.prod(shapes[name]) for name in in_fp32)
    if precision == "autocast":
        return COMPUTE_BYTES[precision] * (num_parameters(model, num_classes) - head)
    return FP32 * head if precision == "bf16" else 0
