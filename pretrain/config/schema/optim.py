"""The optimiser and its schedule."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, Probability, Strict

# What each schedule and each optimiser reads, of the settings that not all of them do.
SCHEDULE_SETTINGS: dict[str, set[str]] = {
    "linear": {"end_lr", "end_hold", "warmup_prefix"},
    "cosine": {"end_lr", "end_hold", "warmup_prefix"},
    "polynomial": {"end_lr", "end_hold", "warmup_prefix", "power"},
    "rsqrt": {"timescale", "shift"},
    "constant": set(),
}
OPTIMIZER_SETTINGS: dict[str, set[str]] = {
    "adamw": {"betas", "eps", "momentum_dtype"},
    "sgd": {"momentum", "momentum_dtype"},
    "adafactor": {"momentum", "momentum_dtype", "beta2_cap", "beta2_power"},
    "lamb": {"betas", "eps"},
}
# These read whole tensors (means of rows and columns, norms), which ZeRO from stage 1 on cuts into flat pieces.
WHOLE_TENSOR_OPTIMIZERS = ("adafactor", "lamb")
NO_MUON = (
    "muon is not offered: DeepSpeed's class chooses its tensors by its own rule (two dimensions, no 'embed' in the "
    "name), so it would orthogonalise the class token and the head; it orthogonalises before the gradient's norm is "
    "taken, so that clip_grad and the reported norm would mean nothing; and it refuses reduce_scatter at stage 3. "
    "Use adamw, adafactor or lamb"
)


class ScheduleConfig(Strict):
    """The learning rate as a function of the step."""

    name: Literal["linear", "cosine", "polynomial", "rsqrt", "constant"] = Field(
        default="cosine", description="Decay after the warmup."
    )
    warmup: Duration = Field(default=Duration(0, "steps"), description="Linear from warmup_lr to lr.")
    warmup_lr: NonNegativeFloat = Field(default=0.0, description="Rate at step 0 of a warmup (DeiT: 1e-6).")
    warmup_prefix: bool = Field(
        default=True,
        description="linear, cosine, polynomial: the decay starts when the warmup ends (big_vision). false: it counts "
        "from step 0 and the warmup hides its start (timm's default, DeiT).",
    )
    cooldown: Duration = Field(default=Duration(0, "steps"), description="Linear to 0 at the end, over any decay.")
    end_lr: NonNegativeFloat = Field(default=0.0, description="linear, cosine, polynomial: rate at the last step.")
    end_hold: Duration = Field(
        default=Duration(0, "steps"),
        description="linear, cosine, polynomial: the decay ends so much earlier, and end_lr stays (timm's "
        "cooldown_epochs).",
    )
    power: PositiveFloat = Field(default=2.0, description="polynomial: exponent of what is left of the run.")
    timescale: Duration = Field(
        default=Duration(10_000, "steps"),
        description="rsqrt: lr / sqrt(1 + (steps since the warmup + shift) / timescale).",
    )
    shift: Duration = Field(default=Duration(0, "steps"), description="rsqrt: see timescale.")
    per_epoch: bool = Field(
        default=False, description="The rate changes when an epoch begins and stays for all of it (timm, DeiT)."
    )

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        foreign = set().union(*SCHEDULE_SETTINGS.values()) - SCHEDULE_SETTINGS[self.name]
        return dict.fromkeys(sorted(foreign), f"would be ignored by name: {self.name}; remove it")

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> ScheduleConfig:
        if self.warmup_lr and not self.warmup.value:
            raise ValueError("warmup_lr would be ignored without warmup; set warmup or remove it")
        if not self.warmup_prefix and not self.warmup.value:
            raise ValueError("warmup_prefix: false would be ignored without warmup; set warmup or remove it")
        return self


class OverrideConfig(Strict):
    """What is different for the tensors whose name a pattern is found in."""

    pattern: str = Field(
        description="Regular expression that is searched in the parameter's name, such as ^head\\.weight$ or ^blocks."
    )
    lr_scale: PositiveFloat | None = Field(
        default=None, description="Factor on the learning rate, beside that of layer_decay."
    )
    weight_decay: NonNegativeFloat | None = Field(
        default=None, description="Instead of optim.weight_decay, for every tensor that matches, kernel or not."
    )
    freeze: bool = Field(default=False, description="Not trained: no gradient, no optimiser state.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _says_something(self) -> OverrideConfig:
        tuned = self.lr_scale is not None or self.weight_decay is not None
        if self.freeze and tuned:
            raise ValueError(f"{self.pattern!r}: lr_scale and weight_decay would be ignored with freeze: true")
        if not self.freeze and not tuned:
            raise ValueError(f"{self.pattern!r} changes nothing; give lr_scale, weight_decay or freeze: true")
        return self


class OptimConfig(Strict):
    """The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding decays."""

    name: Literal["adamw", "sgd", "adafactor", "lamb"] = Field(
        default="adamw",
        description="adamw (decay times lr, as in torch); sgd; adafactor (Scaling ViT's); lamb (apex's FusedLAMB). The "
        "last two need whole tensors: cluster.zero_stage: 0, or DDP.",
    )
    lr: PositiveFloat = Field(description="Peak learning rate; the schedule scales it.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="In the AdamW convention (multiplied by the lr).")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="adamw and lamb.")
    eps: PositiveFloat = Field(default=1e-8, description="adamw and lamb.")
    momentum: Probability = Field(
        default=0.9, description="sgd; and adafactor: what an update keeps of the average of scaled gradients."
    )
    momentum_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="adamw, sgd, adafactor: type in which the first moment or momentum is kept between steps.",
    )
    beta2_cap: Probability = Field(default=0.999, description="adafactor: largest decay of the second moment.")
    beta2_power: PositiveFloat = Field(default=0.8, description="adafactor: the decay at update t is 1 - t^-power.")
    clip_grad: PositiveFloat | None = Field(
        default=None, description="Largest global norm of the gradient; null: no clipping."
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Layer-wise decay of the learning rate (BEiT, timm): the head has lr, each layer below it this "
        "factor less. null: none.",
    )
    overrides: tuple[OverrideConfig, ...] = Field(
        default=(), description="By parameter name: learning rate, decay, freezing. The first pattern found counts."
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Polyak averaging: what an update keeps of the average (0.9999); null: no average."
    )

    @field_validator("name", mode="before")
    @classmethod
    def _no_muon(cls, name: Any) -> Any:
        if name == "muon":
            raise ValueError(NO_MUON)
        return name

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        foreign = set().union(*OPTIMIZER_SETTINGS.values()) - OPTIMIZER_SETTINGS[self.name]
        return dict.fromkeys(sorted(foreign), f"would be ignored by name: {self.name}; remove it")

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> OptimConfig:
        if self.momentum_dtype == "bf16" and self.name == "sgd" and not self.momentum:
            raise ValueError("momentum_dtype would be ignored with momentum: 0; remove it")
        return self

    @property
    def has_fused(self) -> bool:
        """Whether torch has a fused kernel for it."""
        return self.name in ("adamw", "sgd") and self.momentum_dtype == "fp32"

    @property
    def num_states(self) -> float:
        """fp32 numbers that the optimiser keeps per weight (a bf16 one is half), the Polyak average among them.

        Adafactor's factored second moment is left out: a row and a column of each matrix.
        """
        first = 0.5 if self.momentum_dtype == "bf16" else 1.0
        own = {"adamw": first + 1, "sgd": first * (self.momentum > 0), "adafactor": first, "lamb": 2.0}[self.name]
        return own + (self.ema_decay is not None)
