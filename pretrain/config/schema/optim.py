"""Optimisers and learning-rate schedules: one model each.

An optimiser has the properties that memory estimates, checks and backends need.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import ONE_OF, NonNegativeFloat, PositiveFloat, Probability, Strict
from pretrain.config.schema.lora import LoraConfig


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


class OptimConfig(Strict):
    """The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding decays.

    Attributes:
        complete_tensors: whose update reads the complete tensor, so that one rank does it (see
            ``pretrain.optim.owned``): none, all, or hidden kernels, which excludes the head's.
        factors_second_moment: it is kept as means of rows and columns, in addition to ``own_states``
            (see ``pretrain.optim.factored``).
    """

    first_keys = ("name", "lr", "weight_decay")
    complete_tensors: ClassVar[Literal["none", "hidden kernels", "all"]] = "none"
    factors_second_moment: ClassVar[bool] = False

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
    lora: LoraConfig | None = Field(
        default=None,
        description="Train low-rank adapters on frozen weights (init.from) and the head; null: all weights.",
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
    def own_complete_states(self) -> float:
        """``own_states`` of the tensors that ``updates_complete``."""
        return self.own_states

    @property
    def reads_weights(self) -> bool:
        """Whether the update of a complete tensor depends on its weights too, not only on its gradient."""
        return False

    def own_matrix_states(self, rows: int, columns: int) -> int:
        """fp32 values that are kept of a complete matrix, in addition to ``own_complete_states``."""
        return 0

    def refresh_temporaries(self, rows: int, columns: int) -> int:
        """fp32 values allocated while what is computed only in some updates of a complete matrix is computed."""
        return 0

    def complete_flops(self, rows: int, columns: int) -> float:
        """FLOPs of the matrix products in every update of a complete matrix."""
        return 0.0

    def refresh_flops(self, rows: int, columns: int) -> float:
        """FLOPs of what is computed of a complete matrix only in every ``refresh_every``th update."""
        return 0.0

    @property
    def refresh_every(self) -> int:
        """Number of updates between those that cost ``refresh_flops``."""
        return 1

    def complete_cost(self, rows: int, columns: int) -> int:
        """Work of the update of a complete matrix, in any unit: what ranks own is balanced by it."""
        return rows * columns

    def updates_complete(self, *, hidden_kernel: bool) -> bool:
        """Whether the update of a tensor reads all of it; a hidden kernel is one outside the head."""
        return self.complete_tensors == "all" or (self.complete_tensors == "hidden kernels" and hidden_kernel)

    @property
    def others_lr_scale(self) -> float:
        """Factor on the learning rate of tensors that are not updated as complete ones."""
        return 1.0

    @property
    def own_average(self) -> float | None:
        """The optimiser's own average of weights w with a state z is w + own_average · (z - w); None: it keeps none."""
        return None

    @property
    def evaluated(self) -> dict[str, bool]:
        """The weights that are evaluated: suffix in the names of their metrics → whether they are an average."""
        return {"": self.own_average is not None} | ({} if self.ema_decay is None else {"_ema": True})

    @property
    def needs_layers(self) -> bool:
        """Whether the layer of each parameter must be known."""
        return self.layer_decay is not None or self.complete_tensors == "hidden kernels"

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


class MatrixConfig(OptimConfig):
    """An optimiser of matrices: hidden kernels. AdamW updates all other tensors."""

    complete_tensors = "hidden kernels"

    betas: tuple[Probability, Probability] = Field(
        default=(0.9, 0.999), description="Decay rates of AdamW's moments, for tensors that are not hidden kernels."
    )
    eps: PositiveFloat = Field(default=1e-8, description="Of AdamW, for tensors that are not hidden kernels.")
    adamw_lr_scale: PositiveFloat = Field(
        default=1.0, description="Factor on the learning rate of the tensors that AdamW updates."
    )

    @property
    def own_states(self) -> float:
        """See ``OptimConfig``: AdamW's."""
        return 2.0

    @property
    def others_lr_scale(self) -> float:
        """See ``OptimConfig``."""
        return self.adamw_lr_scale


class MuonConfig(MatrixConfig):
    """Muon."""

    name: Literal["muon"] = Field(
        default="muon",
        description="Muon for kernels outside the head, AdamW for all other tensors.",
    )
    momentum: Probability = Field(default=0.95, description="Decay rate of the average of gradients.")
    nesterov: bool = Field(default=True, description="Nesterov's momentum.")
    scale: Literal["moonlight", "original", "spectral"] = Field(
        default="moonlight",
        description="Factor on the orthogonalised update of a matrix (R outputs, C inputs). moonlight: "
        "0.2 · sqrt(max(R, C)), which suits AdamW's lr and weight_decay. original: sqrt(max(1, R / C)). spectral: "
        "sqrt(R / C).",
    )
    num_iterations: Annotated[int, Field(ge=1, le=20)] = Field(default=5, description="Newton-Schulz iterations.")
    orthogonalize_dtype: KeptDtype = Field(default="bf16", description="Type in which they are computed.")

    @property
    def own_complete_states(self) -> float:
        """See ``OptimConfig``."""
        return 1.0

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``: of the largest tensor."""
        return 4

    def complete_flops(self, rows: int, columns: int) -> float:
        """See ``OptimConfig``: three products in each iteration."""
        small, large = sorted((rows, columns))
        return 2.0 * self.num_iterations * small * small * (2 * large + small)


class KroneckerConfig(MatrixConfig):
    """An optimiser that keeps two Kronecker factors of each block of a matrix."""

    betas: tuple[Probability, Probability] = Field(
        default=(0.9, 0.999),
        description="Decay rates: of the average of gradients; of the averages of their squares and Kronecker "
        "factors. Also AdamW's.",
    )
    eps: PositiveFloat = Field(default=1e-8, description="Of Adam's update, and of AdamW.")
    max_preconditioner_dim: Annotated[int, Field(ge=1)] = Field(
        default=1024, description="Most rows and columns of the blocks that matrices are cut into."
    )
    precondition_frequency: Annotated[int, Field(ge=1)] = Field(
        default=10, description="Number of updates from one decomposition of the factors to the next."
    )

    @property
    def own_complete_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0

    def own_matrix_states(self, rows: int, columns: int) -> int:
        """See ``OptimConfig``: of each block its factors, and what is computed of them."""
        return 2 * self._over_blocks(rows, columns, lambda height, width: height**2 + width**2)

    def complete_flops(self, rows: int, columns: int) -> float:
        """See ``OptimConfig``: the factors, and the products with what is computed of them."""
        return 4.0 * self._over_blocks(rows, columns, lambda height, width: height * width * (height + width))

    def refresh_temporaries(self, rows: int, columns: int) -> int:
        """See ``OptimConfig``: four matrices of a factor's size, for eigenvectors as for a QR decomposition."""
        return 4 * min(max(rows, columns), self.max_preconditioner_dim) ** 2

    def refresh_flops(self, rows: int, columns: int) -> float:
        """See ``OptimConfig``: eigendecompositions (Golub and Van Loan: 9 N³), and a product (2 N³)."""
        return 11.0 * self._cubes(rows, columns)

    @property
    def refresh_every(self) -> int:
        """See ``OptimConfig``."""
        return self.precondition_frequency

    def complete_cost(self, rows: int, columns: int) -> int:
        """See ``OptimConfig``: FLOPs."""
        rare = self.refresh_flops(rows, columns) / self.refresh_every
        return round(self.complete_flops(rows, columns) + rare)

    def _cubes(self, rows: int, columns: int) -> int:
        return self._over_blocks(rows, columns, lambda height, width: height**3 + width**3)

    def _over_blocks(self, rows: int, columns: int, of_block: Callable[[int, int], int]) -> int:
        sides = [divmod(size, self.max_preconditioner_dim) for size in (rows, columns)]
        heights, widths = ({self.max_preconditioner_dim: full, rest: int(rest > 0)} for full, rest in sides)
        return sum(
            of_block(height, width) * num * times for height, num in heights.items() for width, times in widths.items()
        )


class ShampooConfig(KroneckerConfig):
    """Shampoo."""

    name: Literal["shampoo"] = Field(
        default="shampoo",
        description="Shampoo, grafted to Adam, for kernels outside the head, AdamW for all other tensors.",
    )
    epsilon: PositiveFloat = Field(default=1e-12, description="Added to the factors before their inverse roots.")
    start_preconditioning_step: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="First update with Shampoo's direction; those before are Adam's. null: precondition_frequency.",
    )
    momentum: Probability = Field(default=0.0, description="Decay rate of a sum of updates; 0: none.")
    use_nesterov: bool = Field(default=False, description="Nesterov's momentum.")

    @property
    def own_complete_states(self) -> float:
        """See ``OptimConfig``."""
        return 2.0 + (self.momentum > 0)

    @property
    def reads_weights(self) -> bool:
        """See ``OptimConfig``: the decay is part of the sum."""
        return self.momentum > 0

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``: of the largest tensor."""
        return 4

    @property
    def first_refresh(self) -> int:
        """The first update with Shampoo's direction, counted from 1."""
        return self.start_preconditioning_step or self.precondition_frequency

    def refreshes_at(self, update: int) -> bool:
        """Whether inverse roots are computed at an update, counted from 1."""
        return update == self.first_refresh or (
            update > self.first_refresh and update % self.precondition_frequency == 0
        )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> ShampooConfig:
        if self.use_nesterov and not self.momentum:
            raise ValueError("use_nesterov would be ignored with momentum: 0; set momentum or remove it")
        if self.first_refresh < self.precondition_frequency:
            raise ValueError(
                f"start_preconditioning_step is {self.first_refresh}, but must be at least precondition_frequency, "
                f"{self.precondition_frequency}"
            )
        return self


class SoapConfig(KroneckerConfig):
    """SOAP."""

    name: Literal["soap"] = Field(
        default="soap",
        description="SOAP, Adam in the eigenbasis of Shampoo's factors, for kernels outside the head, AdamW for all "
        "other tensors.",
    )
    betas: tuple[Probability, Probability] = Field(
        default=(0.95, 0.95),
        description="Decay rates: of the average of gradients; of the averages of their squares and Kronecker "
        "factors. Also AdamW's.",
    )

    @property
    def num_temporaries(self) -> int:
        """See ``OptimConfig``: of the largest tensor."""
        return 4

    def complete_flops(self, rows: int, columns: int) -> float:
        """See ``OptimConfig``: the factors, and three changes of basis."""
        return 2 * super().complete_flops(rows, columns)

    def refresh_flops(self, rows: int, columns: int) -> float:
        """See ``OptimConfig``: a product (2 N³) and a QR decomposition (Golub and Van Loan: 8/3 N³) of each factor."""
        return (2 + 8 / 3) * self._cubes(rows, columns)


def numbers_of(dtype: KeptDtype) -> float:
    """Size of a value of this type relative to fp32."""
    return 0.5 if dtype == "bf16" else 1.0


Optim = Annotated[
    AdamWConfig
    | SGDConfig
    | AdafactorConfig
    | LambConfig
    | MuonConfig
    | ShampooConfig
    | SoapConfig
    | ScheduleFreeConfig,
    ONE_OF,
]
