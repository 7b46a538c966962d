"""The optimiser: one model for each, with the facts that memory, checks and backends ask."""

from __future__ import annotations

import re
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
    weight_decay: NonNegativeFloat = Field(default=0.0, description="In the AdamW convention (multiplied by the lr).")
    clip_grad: PositiveFloat | None = Field(
        default=None, description="Largest global norm of the gradient; null: no clipping."
    )
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Layer-wise decay of the learning rate (BEiT, timm): the head has lr, each layer below it this "
        "factor less. null: none.",
    )
    overrides: tuple[OverrideConfig, ...] = Field(
        default=(),
        description="By parameter name: learning rate, decay, freezing. The first pattern that matches counts.",
    )
    schedule: Schedule = Field(default_factory=CosineConfig, description="The learning rate as a function of the step.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Polyak averaging: what an update keeps of the average (0.9999); null: no average."
    )

    @property
    def own_states(self) -> float:
        """fp32 numbers that the optimiser keeps per weight; a bf16 one is half."""
        raise NotImplementedError

    @property
    def num_states(self) -> float:
        """As ``own_states``, with the Polyak average."""
        return self.own_states + (self.ema_decay is not None)

    @property
    def num_temporaries(self) -> int:
        """fp32 tensors of a parameter's size that an update makes, on a GPU."""
        return 2

    @property
    def has_fused(self) -> bool:
        """Whether torch has a fused kernel for it."""
        return False


KeptDtype = Literal["fp32", "bf16"]


class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = Field(default="adamw", description="The decay is multiplied by lr, as in torch.")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="Decay of the two moments.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")
    momentum_dtype: KeptDtype = Field(
        default="fp32", description="Type in which the first moment is kept between steps."
    )

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
    momentum: Probability = Field(default=0.9, description="What an update keeps of the sum of gradients.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Type in which the momentum is kept between steps.")

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
    """Adafactor as Scaling ViT trains with it."""

    needs_unsharded = True

    name: Literal["adafactor"] = Field(
        default="adafactor", description="Scaling ViT's; needs unsharded tensors: cluster.zero_stage: 0, or DDP."
    )
    momentum: Probability = Field(default=0.9, description="What an update keeps of the average of scaled gradients.")
    momentum_dtype: KeptDtype = Field(default="fp32", description="Type in which the momentum is kept between steps.")
    beta2_cap: Probability = Field(default=0.999, description="Largest decay of the second moment.")
    beta2_power: PositiveFloat = Field(default=0.8, description="The decay at update t is 1 - t^-power.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``; without the factored second moment, a row and a column of each matrix."""
        return numbers_of(self.momentum_dtype)


class LambConfig(OptimConfig):
    """LAMB."""

    needs_unsharded = True

    name: Literal["lamb"] = Field(
        default="lamb", description="As apex's FusedLAMB; needs unsharded tensors: cluster.zero_stage: 0, or DDP."
    )
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="Decay of the two moments.")
    eps: PositiveFloat = Field(default=1e-8, description="Added to the root of the second moment.")

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0


def numbers_of(dtype: KeptDtype) -> float:
    """How many fp32 numbers take the place of one of this type."""
    return 0.5 if dtype == "bf16" else 1.0


Optim = Annotated[AdamWConfig | SGDConfig | AdafactorConfig | LambConfig, ONE_OF]
