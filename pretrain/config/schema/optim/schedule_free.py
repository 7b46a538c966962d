"""The optimiser that averages its weights: schedule-free AdamW."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveFloat, Probability
from pretrain.config.schema.optim.base import OptimConfig
from pretrain.config.schema.optim.schedules import ConstantConfig


class ScheduleFreeConfig(OptimConfig):
    """Schedule-free AdamW."""

    name: Literal["schedule_free"] = Field(
        default="schedule_free",
        description="AdamW with a constant schedule that averages its weights instead; the average is evaluated and "
        "exported.",
    )
    betas: tuple[Probability, Probability] = Field(
        default=(0.9, 0.999),
        description="Share of the average in the weights at which gradients are taken, above 0, and decay rate of the "
        "second moment.",
    )
    eps: PositiveFloat = Field(default=1e-8, description="Added to the square root of the second moment.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0

    @property
    def own_average(self) -> float:
        """See ``OptimConfig``: the weights y are betas[0] · x + (1 - betas[0]) · z."""
        return 1.0 - 1.0 / self.betas[0]

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``."""
        return 1

    @model_validator(mode="after")
    def _averages_once(self) -> ScheduleFreeConfig:
        if not self.betas[0]:
            raise ValueError("betas: the first must be above 0; with 0 the weights would have no part of the average")
        if not isinstance(self.schedule, ConstantConfig) or self.schedule.cooldown.value:
            raise ValueError(
                f"schedule: {self.schedule.name} lowers the learning rate, which the average replaces: use "
                "{name: constant}, with a warmup or without, and no cooldown"
            )
        if self.ema_decay is not None:
            raise ValueError(
                "ema_decay: schedule_free averages the weights itself, for evaluations and weights files; remove it"
            )
        return self
