"""Costs of any model: its family is asked, and sharding and precision are applied to the answer.

No torch is imported unless the family needs it.
"""

from __future__ import annotations

from typing import Any

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import cost_is_known, family_of
from pretrain.sharding import zero_memory
from pretrain.sharding.zero_memory import Footprint, MemoryBytes, Precision

can_tell = cost_is_known


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model."""
    return family_of(model).num_parameters(model, num_classes, with_head=with_head)


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of one image's forward pass."""
    return family_of(model).forward_macs(model, num_classes, with_head=with_head)


def recomputed_macs(model: ModelConfig, checkpointing: str) -> int:
    """Multiply-adds of one image that the backward pass does again."""
    return family_of(model).recomputed_macs(model, checkpointing)


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, 3 passes' worth."""
    return num_images * 3 * 2 * forward_macs(model, num_classes)


def footprint(model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none") -> Footprint:
    """The numbers of the model that decide its memory."""
    return family_of(model).footprint(model, num_classes, precision=precision, checkpointing=checkpointing)


def memory_bytes(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none", **settings: Any
) -> MemoryBytes:
    """Bytes on one device while training; ``settings`` as ``zero_memory.memory_bytes`` takes them."""
    found = footprint(model, num_classes, precision=precision, checkpointing=checkpointing)
    return zero_memory.memory_bytes(found, precision=precision, **settings)
