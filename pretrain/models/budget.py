"""What any model costs: our Vision Transformer in closed form, a backbone of timm measured on the meta device.

No torch is imported unless a model of timm is asked about.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from pretrain.config.schema.model import ModelConfig
from pretrain.models import cost
from pretrain.sharding import zero_memory
from pretrain.sharding.zero_memory import Footprint, MemoryBytes, Precision


def can_tell(model: ModelConfig) -> bool:
    """Whether the cost can be known here: that of timm's models needs torch and timm."""
    needed = ("torch", "timm") if model.is_timm else ()
    return all(importlib.util.find_spec(name) is not None for name in needed)


def _source(model: ModelConfig) -> Any:
    if not model.is_timm:
        return cost
    from pretrain.models import timm_cost

    return timm_cost


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model; see ``cost.num_parameters``."""
    return _source(model).num_parameters(model, num_classes, with_head=with_head)


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of one image's forward pass; see ``cost.forward_macs``."""
    return _source(model).forward_macs(model, num_classes, with_head=with_head)


def recomputed_macs(model: ModelConfig, checkpointing: str) -> int:
    """Multiply-adds of one image that the backward pass does again."""
    return _source(model).recomputed_macs(model, checkpointing)


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, 3 passes' worth."""
    return num_images * 3 * 2 * forward_macs(model, num_classes)


def footprint(model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none") -> Footprint:
    """What of the model decides its memory."""
    return _source(model).footprint(model, num_classes, precision=precision, checkpointing=checkpointing)


def memory_bytes(
    model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none", **settings: Any
) -> MemoryBytes:
    """Bytes on one device while training; ``settings`` as ``zero_memory.memory_bytes`` takes them."""
    found = footprint(model, num_classes, precision=precision, checkpointing=checkpointing)
    return zero_memory.memory_bytes(found, precision=precision, **settings)
