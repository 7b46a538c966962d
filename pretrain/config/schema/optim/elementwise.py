"""Optimisers that treat each weight alone: AdamW and SGD."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveFloat, Probability
from pretrain.config.schema.optim.base import KeptDtype, OptimConfig, numbers_of


class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = Field(default="adamw", description="AdamW; the decay is multiplied by lr, as in torch.")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="Decay rates of the two moments.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the square root of the second moment.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Storage type of the first moment.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return numbers_of(self.momentum_dtype) + 1

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``."""
        return 1

    @property
    def has_fused(self) -> bool:
        """See ``OptimConfig``."""
        return self.momentum_dtype == "fp32"


class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = Field(default="sgd", description="With momentum.")
    momentum: Probability = Field(default=0.9, description="Decay rate of the sum of gradients.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Storage type of the momentum.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return numbers_of(self.momentum_dtype) * (self.momentum > 0)

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``."""
        return int(self.weight_decay > 0)

    @property
    def has_fused(self) -> bool:
        """See ``OptimConfig``."""
        return self.momentum_dtype == "fp32"

    @model_validator(mode="after")
    def _dtype_of_something(self) -> SGDConfig:
        if self.momentum_dtype == "bf16" and not self.momentum:
            raise ValueError("momentum_dtype would be ignored with momentum: 0; remove it")
        return self
