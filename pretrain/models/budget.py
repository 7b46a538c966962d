"""Costs of any model, computed by its family; ``pretrain.sharding`` computes the share of one rank.

Imports torch only if the family needs it.
"""

from __future__ import annotations

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import cost_is_known, family_of
from pretrain.models.footprint import Footprint, Precision

can_tell = cost_is_known


def require_known(model: ModelConfig) -> None:
    """Raises ConfigError if the cost cannot be computed here."""
    if not can_tell(model):
        packages = " and ".join(model.family.packages)
        raise ConfigError(
            f"model.name: the size and cost of {model.name} are measured on torch's meta device, without weights or "
            f"data: install {packages} for it, or use a model of name: vit"
        )


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Parameters of the model."""
    return family_of(model).num_parameters(model, num_classes, with_head=with_head)


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of one image's forward pass."""
    return family_of(model).forward_macs(model, num_classes, with_head=with_head)


def recomputed_macs(model: ModelConfig, checkpointing: str) -> int:
    """Multiply-adds per image that the backward pass recomputes."""
    return family_of(model).recomputed_macs(model, checkpointing)


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, times 3 for forward and backward."""
    return num_images * 3 * 2 * forward_macs(model, num_classes)


def footprint(model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none") -> Footprint:
    """The numbers of the model that decide its memory."""
    return family_of(model).footprint(model, num_classes, precision=precision, checkpointing=checkpointing)


def parameter_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter, in the order of the model."""
    family = family_of(model)
    statistics = set(family.running_statistics(model, num_classes))
    shapes = family.tensor_shapes(model, num_classes)
    return {name: shape for name, shape in shapes.items() if name not in statistics}


def layer_ids(model: ModelConfig, num_classes: int) -> dict[str, int]:
    """Parameter name → layer, 0 for the stem and the largest for the head (layer-wise decay)."""
    return family_of(model).layer_ids(model, num_classes)
