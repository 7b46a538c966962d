"""The optimisers: one model each, with the properties that memory estimates, checks and backends need."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.config.schema.base import ONE_OF, NonNegativeFloat, PositiveFloat, Probability, Strict
from pretrain.config.schema.schedule import CosineConfig, Schedule

NO_MUON = (
    "muon is not offered: DeepSpeed's class chooses its tensors by its own rule (two dimensions, no 'embed' in the "
    "name), so it would orthogonalise the class token and the head; it orthogonalises before the gradient's norm is "
    "taken, so that clip_grad and the reported norm would mean nothing; and it refuses reduce_scatter at stage 3. "
    "Use adamw, adafactor or lamb"
)


class OverrideConfig(Strict):
    """Settings of the parameters whose name matches a pattern."""

    pattern: str = Field(
        description="Regular expression searched in the parameter's name, such as ^head\\.weight$ or ^blocks."
    )
    lr_scale: PositiveFloat | None = Field(
        default=None, description="Factor on the learning rate, in addition to layer_decay's."
    )
    weight_decay: NonNegativeFloat | None = Field(
        default=None, description="Replaces optim.weight_decay for all matching tensors, kernels or not."
    )
    freeze: bool = Field(default=False, description="Do not train: no gradient and no optimiser state.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _changes_something(self) -> OverrideConfig:
        tuned = self.lr_scale is not None or self.weight_decay is not None
        if self.freeze and tuned:
            raise ValueError(f"{self.pattern!r}: lr_scale and weight_decay would be ignored with freeze: true")
        if not self.freeze and not tuned:
            raise ValueError(f"{self.pattern!r} changes nothing; give lr_scale, weight_decay or freeze: true")
        return self


class OptimConfig(Strict):
    """The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding decays.

    Attributes:
        needs_unsharded: an update reads complete tensors (norms, means of rows and columns), which ZeRO cuts into flat
            pieces from stage 1 on.
    """

    first_keys = ("name", "lr", "weight_decay")
    not_offered: ClassVar[Mapping[str, str]] = {"muon": NO_MUON}
    needs_unsharded: ClassVar[bool] = False

    name: str
    lr: PositiveFloat = Field(description="Peak learning rate; the schedule scales it.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Weight decay in the AdamW convention (multiplied by lr)."
    )
    clip_grad: PositiveFloat | None = Field(
        default=None, description="Maximum global gradient norm; null: no clipping."
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Layer-wise learning-rate decay (BEiT, timm): the head has lr, and each layer below it is scaled "
        "by this factor again. null: none.",
    )
    overrides: tuple[OverrideConfig, ...] = Field(
        default=(),
        description="Per-parameter overrides (learning rate, decay, freezing), matched by regex. The first match wins.",
    )
    schedule: Schedule = Field(default_factory=CosineConfig, description="The learning rate as a function of the step.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Decay of the EMA of the weights, such as 0.9999; null: no EMA."
    )

    @property
    @abstractmethod
    def own_states(self) -> float:
        """fp32 values that the optimiser keeps per weight; a bf16 value counts as half."""

    @property
    def num_states(self) -> float:
        """``own_states`` plus the EMA."""
        return self.own_states + (self.ema_decay is not None)

    @property
    def num_temporaries(self) -> int:
        """Temporary fp32 tensors of a parameter's size that an update allocates on a GPU."""
        return 2

    @property
    def has_fused(self) -> bool:
        """Whether torch has a fused kernel for this optimiser."""
        return False


KeptDtype = Literal["fp32", "bf16"]


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


class AdafactorConfig(OptimConfig):
    """Adafactor as used by Scaling ViT."""

    needs_unsharded = True

    name: Literal["adafactor"] = Field(
        default="adafactor",
        description="Adafactor of Scaling ViT; needs unsharded tensors: cluster.zero_stage: 0, or DDP.",
    )
    momentum: Probability = Field(default=0.9, description="Decay rate of the average of scaled gradients.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Storage type of the momentum.")
    beta2_cap: Probability = Field(default=0.999, description="Maximum decay rate of the second moment.")
    beta2_power: PositiveFloat = Field(
        default=0.8, description="The second moment's decay rate at update t is 1 - t^-power."
    )

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``. Excludes the factored second moment, which is a row and a column per matrix."""
        return numbers_of(self.momentum_dtype)


class LambConfig(OptimConfig):
    """LAMB."""

    needs_unsharded = True

    name: Literal["lamb"] = Field(
        default="lamb",
        description="LAMB as in apex's FusedLAMB; needs unsharded tensors: cluster.zero_stage: 0, or DDP.",
    )
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="Decay rates of the two moments.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the square root of the second moment.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0


def numbers_of(dtype: KeptDtype) -> float:
    """Size of a value of this type relative to fp32."""
    return 0.5 if dtype == "bf16" else 1.0


Optim = Annotated[AdamWConfig | SGDConfig | AdafactorConfig | LambConfig, ONE_OF]
