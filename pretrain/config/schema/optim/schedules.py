"""Learning-rate schedules: one model each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import ONE_OF, NonNegativeFloat, PositiveFloat, Strict


class ScheduleConfig(Strict):
    """The learning rate as a function of the step."""

    first_keys = ("name", "warmup", "warmup_lr", "warmup_prefix", "cooldown")
    needs_length: ClassVar[bool] = True  # the curve depends on the run's length, so a cooldown cannot shorten it

    name: str
    warmup: Duration = Field(
        default=Duration(0, "steps"), description="Length of the linear increase from warmup_lr to lr."
    )
    warmup_lr: NonNegativeFloat = Field(default=0.0, description="Learning rate at step 0 of the warmup (DeiT: 1e-6).")
    cooldown: Duration = Field(
        default=Duration(0, "steps"), description="Length of a final linear decrease to 0, on top of any decay."
    )
    per_epoch: bool = Field(default=False, description="Change the rate only at the start of an epoch (timm, DeiT).")

    @property
    def decays_from_start(self) -> bool:
        """Whether the decay counts from step 0 instead of from the end of the warmup."""
        return False

    @property
    def durations(self) -> dict[str, Duration]:
        """The keys whose values are durations."""
        values = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: value for key, value in values.items() if isinstance(value, Duration)}

    @model_validator(mode="after")
    def _warmup_settings_have_a_warmup(self) -> ScheduleConfig:
        if self.warmup_lr and not self.warmup.value:
            raise ValueError("warmup_lr would be ignored without warmup; set warmup or remove it")
        if self.decays_from_start and not self.warmup.value:
            raise ValueError("warmup_prefix: false would be ignored without warmup; set warmup or remove it")
        return self


class EndingScheduleConfig(ScheduleConfig):
    """A schedule whose decay ends with the run."""

    warmup_prefix: bool = Field(
        default=True,
        description="Start the decay when the warmup ends (big_vision). false: start it at step 0, where the warmup "
        "overrides it (timm's default, DeiT).",
    )
    end_lr: NonNegativeFloat = Field(default=0.0, description="Learning rate at the last step.")
    end_hold: Duration = Field(
        default=Duration(0, "steps"),
        description="End the decay this much earlier and hold end_lr (timm's cooldown_epochs).",
    )

    @property
    def decays_from_start(self) -> bool:
        """See ``ScheduleConfig``."""
        return not self.warmup_prefix


class CosineConfig(EndingScheduleConfig):
    """Decay along half a cosine."""

    name: Literal["cosine"] = Field(default="cosine", description="Decay from lr to end_lr along half a cosine.")


class LinearConfig(EndingScheduleConfig):
    """Linear decay."""

    name: Literal["linear"] = Field(default="linear", description="Linear decay from lr to end_lr.")


class PolynomialConfig(EndingScheduleConfig):
    """Decay by a power of the remaining fraction of the run."""

    name: Literal["polynomial"] = Field(
        default="polynomial", description="Decay by a power of the remaining fraction of the run."
    )
    power: PositiveFloat = Field(default=2.0, description="The exponent.")


class RsqrtConfig(ScheduleConfig):
    """Decay by the inverse square root of the step."""

    needs_length = False

    name: Literal["rsqrt"] = Field(default="rsqrt", description="Inverse square root of the step (Scaling ViT).")
    timescale: Duration = Field(
        default=Duration(10_000, "steps"),
        description="lr / sqrt(1 + (steps since the warmup + shift) / timescale).",
    )
    shift: Duration = Field(default=Duration(0, "steps"), description="See timescale.")


class ConstantConfig(ScheduleConfig):
    """No decay."""

    needs_length = False

    name: Literal["constant"] = Field(default="constant", description="No decay.")


Schedule = Annotated[CosineConfig | LinearConfig | PolynomialConfig | RsqrtConfig | ConstantConfig, ONE_OF]
