"""The optimiser and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, Probability, Strict


class ScheduleConfig(Strict):
    """The learning rate as a function of the step."""

    name: Literal["linear", "cosine", "polynomial", "rsqrt", "constant"] = Field(
        default="cosine", description="Decay after the warmup."
    )
    warmup: Duration = Field(default=Duration(0, "steps"), description="Linear from 0 to lr.")
    cooldown: Duration = Field(default=Duration(0, "steps"), description="Linear to 0 at the end, over any decay.")
    end_lr: NonNegativeFloat = Field(default=0.0, description="linear, cosine, polynomial: rate at the last step.")
    power: PositiveFloat = Field(default=2.0, description="polynomial: exponent of what is left of the run.")
    timescale: Duration = Field(
        default=Duration(10_000, "steps"),
        description="rsqrt: lr / sqrt(1 + (steps since the warmup + shift) / timescale).",
    )
    shift: Duration = Field(default=Duration(0, "steps"), description="rsqrt: see timescale.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ScheduleConfig:
        uses = {"linear": {"end_lr"}, "cosine": {"end_lr"}, "polynomial": {"end_lr", "power"}}
        uses |= {"rsqrt": {"timescale", "shift"}, "constant": set()}
        ignored = sorted({"end_lr", "power", "timescale", "shift"} & self.model_fields_set - uses[self.name])
        if ignored:
            raise ValueError(f"{', '.join(ignored)} would be ignored by name: {self.name}; remove it")
        return self


class OptimConfig(Strict):
    """The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding decays."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw (decay times lr, as in torch) or SGD.")
    lr: PositiveFloat = Field(description="Peak learning rate; the schedule scales it.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="In the AdamW convention (multiplied by the lr).")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="adamw only.")
    eps: PositiveFloat = Field(default=1e-8, description="adamw only.")
    momentum: Probability = Field(default=0.9, description="sgd only.")
    clip_grad: PositiveFloat | None = Field(
        default=None, description="Largest global norm of the gradient; null: no clipping."
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Polyak averaging: what an update keeps of the average (0.9999); null: no average."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> OptimConfig:
        foreign = {"adamw": {"momentum"}, "sgd": {"betas", "eps"}}[self.name] & self.model_fields_set
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored by name: {self.name}; remove it")
        return self
