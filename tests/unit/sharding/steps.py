"""Steps of a model without an experiment around it."""

from __future__ import annotations

import math
from typing import Any

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.protocol import Precision
from pretrain.models.families.registry import family_of, parameter_shapes
from pretrain.sharding.protocol import Memory, Sharding
from pretrain.sharding.step import Step
from pretrain.sharding.weights import Weights


def step(
    model: ModelConfig, num_classes: int, *, precision: Precision = "bf16", checkpointing: str = "none", **more: Any
) -> Step:
    """A step with all parameters in one group; ``more`` are fields of ``Step``, with two micro-steps if not given."""
    shapes = parameter_shapes(model, num_classes)
    sizes = tuple(math.prod(shape) for shape in shapes.values())
    return Step(
        footprint=family_of(model).footprint(model, num_classes, precision=precision, checkpointing=checkpointing),
        weights=Weights(sizes, (True,) * len(sizes), (sizes,), (False,) * len(sizes)),
        precision=precision,
        **{"num_devices": 1, "micro_batch_size": 1, "accumulation_steps": 2, **more},
    )


def memory(sharding: Sharding, model: ModelConfig, num_classes: int, **settings: Any) -> Memory:
    """The bytes that a rank holds; ``settings`` as ``step`` takes them."""
    return sharding.memory(step(model, num_classes, **settings))
