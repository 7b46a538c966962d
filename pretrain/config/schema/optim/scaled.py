"""Optimisers that scale the update of each tensor by a norm: Adafactor and LAMB."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, Probability
from pretrain.config.schema.optim.base import KeptDtype, OptimConfig, numbers_of


class AdafactorConfig(OptimConfig):
    """Adafactor as used by Scaling ViT."""

    complete_tensors = "all"
    factors_second_moment = True

    name: Literal["adafactor"] = Field(default="adafactor", description="Adafactor of Scaling ViT.")
    momentum: Probability = Field(default=0.9, description="Decay rate of the average of scaled gradients.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Storage type of the momentum.")
    beta2_cap: Probability = Field(default=0.999, description="Maximum decay rate of the second moment.")
    beta2_power: PositiveFloat = Field(
        default=0.8, description="The second moment's decay rate at update t is 1 - t^-power."
    )

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``. The factored second moment is counted by shapes (``factors_second_moment``)."""
        return numbers_of(self.momentum_dtype)

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``: the squared gradient is kept while the gradient is scaled twice."""
        return 3


class LambConfig(OptimConfig):
    """LAMB."""

    complete_tensors = "all"

    name: Literal["lamb"] = Field(default="lamb", description="LAMB as in apex's FusedLAMB.")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="Decay rates of the two moments.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the square root of the second moment.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0

    @property
    def reads_weights(self) -> bool:
        """See ``OptimConfig``."""
        return True
