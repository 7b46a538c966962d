"""What a Vision Transformer costs: parameters, multiply-adds, FLOPs and bytes, in closed form. No torch.

Legend: H W pixels · P patch side · N patch tokens · T tokens with prefix · D width · M MLP width · A heads · K classes.
GMAC counts a multiplication and its addition as one; FLOPs count two. MiB and GiB are left to the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pretrain.config.schema import ModelConfig
from pretrain.models.variants import (
    NUM_CHANNELS,
    ViTShape,
    is_head_tensor,
    parameter_shapes,
    representation_size,
    resolve,
)

Precision = Literal["fp32", "bf16", "autocast"]
Checkpointing = Literal["none", "full"]

_FP32 = 4
_COMPUTE_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 2}  # of what matmuls read
_WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 4}  # of the residual stream too


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model; without the head, its tanh layer does not count either."""
    shapes = parameter_shapes(model, num_classes)
    return sum(math.prod(shape) for name, shape in shapes.items() if with_head or not is_head_tensor(name))


def forward_macs(model: ModelConfig, num_classes: int) -> int:
    """Multiply-adds of the matrix products in one image's forward pass, attention included.

    Norms, softmax, GELU and additions are left out, as in every published GMAC figure.
    """
    shape, hidden = resolve(model), representation_size(model)
    tokens, width = shape.num_tokens, shape.embed_dim
    embed = shape.num_patches * NUM_CHANNELS * math.prod(shape.patch) * width
    dense = tokens * (4 * width * width + 2 * width * shape.mlp_dim)
    attention = 2 * tokens * tokens * width
    head = width * hidden + hidden * num_classes if hidden else width * num_classes
    return embed + shape.depth * (dense + attention) + head * (2 if model.distilled else 1)


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, 3 passes' worth.

    Recomputation by activation checkpointing is no useful work and is not counted.
    """
    return num_images * 3 * 2 * forward_macs(model, num_classes)


def activation_bytes(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: Checkpointing = "none"
) -> int:
    """Bytes per image that the forward pass keeps for the backward pass (eager mode, fused attention).

    Counted once: q, k and v share a tensor, as do the attention's output and its projection's input. Drop-path scales
    and biases are negligible; dropout masks are one byte an element, as CUDA keeps them.
    """
    shape = resolve(model)
    blocks = shape.depth * _residual_bytes(shape, precision)
    if checkpointing == "none":
        blocks = shape.depth * _block_bytes(shape, model, precision)
    return blocks + _ends_bytes(shape, model, num_classes, precision)


def working_bytes(model: ModelConfig, *, precision: Precision, checkpointing: Checkpointing = "none") -> int:
    """Bytes per image that the backward pass needs at once on top of ``activation_bytes``.

    The gradients around one block's MLP (two of its hidden width, two of the residual stream) and, with full
    checkpointing, the inside of one block that is computed again.
    """
    shape = resolve(model)
    hidden = 2 * shape.num_tokens * shape.mlp_dim * _COMPUTE_BYTES[precision]
    recomputed = _block_bytes(shape, model, precision) if checkpointing == "full" else 0
    return hidden + 2 * _residual_bytes(shape, precision) + recomputed


def _residual_bytes(shape: ViTShape, precision: Precision) -> int:
    return shape.num_tokens * shape.embed_dim * _WEIGHT_BYTES[precision]


def _block_bytes(shape: ViTShape, model: ModelConfig, precision: Precision) -> int:
    tokens, width = shape.num_tokens, shape.embed_dim
    # The norms read the residual stream twice; in the compute type: two norms' outputs, q k v, the attention's output,
    # and the hidden layer before and after GELU.
    residual = 2 * _residual_bytes(shape, precision)
    compute = tokens * (6 * width + 2 * shape.mlp_dim) * _COMPUTE_BYTES[precision]
    statistics = _FP32 * (2 * 2 * tokens + shape.num_heads * tokens)  # mean and 1/std of two norms; logsumexp
    masks = tokens * (2 * width + shape.mlp_dim) if model.dropout else 0
    return residual + compute + statistics + masks


def _ends_bytes(shape: ViTShape, model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Image, final norm, fp32 head, and for the loss the log-probabilities (or logits) and targets."""
    image = NUM_CHANNELS * math.prod(shape.img_size) * _COMPUTE_BYTES[precision]
    pool_first = model.pool == "avg_norm"
    norm = (
        _FP32 * (shape.embed_dim + 2)
        if pool_first
        else _residual_bytes(shape, precision) + _FP32 * 2 * shape.num_tokens
    )
    hidden = representation_size(model) or 0
    head = _FP32 * (shape.embed_dim + 2 * hidden)
    masks = shape.num_tokens * shape.embed_dim if model.dropout else 0
    return image + norm + head + masks + 2 * _FP32 * num_classes


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes on one device. What is held all the time, and what only one phase of a step holds."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    update: int

    @property
    def peak(self) -> int:
        """The most that is held at once: activations are gone when the optimiser updates."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.update)


def memory_bytes(
    model: ModelConfig,
    num_classes: int,
    *,
    precision: Precision,
    zero_stage: int,
    num_devices: int,
    micro_batch_size: int,
    checkpointing: Checkpointing = "none",
    num_optimizer_states: int = 2,
) -> MemoryBytes:
    """Bytes on one device while training.

    Assumed (p parameters over R devices; a share is p / R from the ZeRO stage that cuts it, else p):
      weights: 2 p in bf16, 4 p in fp32 and autocast; stage 3 holds its share and two whole blocks (one in use, one
        prefetched). Autocast's bf16 copies (2 p) and bf16's fp32 copy of the head live with the activations.
      gradients: in the weights' type; a share from stage 2 on.
      optimizer: ``num_optimizer_states`` (AdamW 2, SGD with momentum 1) × 4 p, and from stage 1 on the fp32 master
        weights, 4 p, which DeepSpeed also keeps when the weights are fp32; a share from stage 1 on.
      update: the fp32 copy of the owned gradients (stage ≥ 1) and one temporary of torch's optimiser, 4 p each.
      activations: ``activation_bytes`` and ``working_bytes`` of the micro-batch.
    Not counted: communication buckets, the allocator's fragmentation, the CUDA context (together about 2 GiB).

    Args:
        model: the architecture.
        num_classes: K, the width of the head.
        precision: as in the experiment.
        zero_stage: 0 to 3; 0 also stands for DDP.
        num_devices: R, over which ZeRO shards.
        micro_batch_size: images per device in one forward and backward pass.
        checkpointing: full keeps each block's input only.
        num_optimizer_states: fp32 tensors that the optimiser keeps per parameter.
    """
    parameters = num_parameters(model, num_classes)
    share = {stage: -(-parameters // num_devices) if zero_stage >= stage else parameters for stage in (1, 2, 3)}
    weight_bytes = _WEIGHT_BYTES[precision]
    gathered = 2 * _block_parameters(resolve(model)) if zero_stage == 3 else 0
    sharded = zero_stage >= 1
    kept = activation_bytes(model, num_classes, precision=precision, checkpointing=checkpointing)
    working = working_bytes(model, precision=precision, checkpointing=checkpointing)
    return MemoryBytes(
        weights=weight_bytes * min(parameters, share[3] + gathered),
        gradients=weight_bytes * share[2],
        optimizer=_FP32 * share[1] * (num_optimizer_states + sharded),
        activations=micro_batch_size * (kept + working) + _cast_bytes(model, num_classes, precision),
        update=_FP32 * share[1] * (1 + sharded),
    )


def _block_parameters(shape: ViTShape) -> int:
    return 4 * shape.embed_dim**2 + 2 * shape.embed_dim * shape.mlp_dim + 9 * shape.embed_dim + shape.mlp_dim


def _cast_bytes(model: ModelConfig, num_classes: int, precision: Precision) -> int:
    """Copies of the weights in another type that the backward pass reads."""
    if precision == "autocast":
        return _COMPUTE_BYTES[precision] * num_parameters(model, num_classes, with_head=False)
    head = num_parameters(model, num_classes) - num_parameters(model, num_classes, with_head=False)
    return _FP32 * head if precision == "bf16" else 0
