"""The settings of every optimiser, and the properties that memory estimates, checks and backends need of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, Strict
from pretrain.config.schema.lora import LoraConfig
from pretrain.config.schema.optim.overrides import OverrideConfig
from pretrain.config.schema.optim.schedules import CosineConfig, Schedule

KeptDtype = Literal["fp32", "bf16"]


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


def numbers_of(dtype: KeptDtype) -> float:
    """Size of a value of this type relative to fp32."""
    return 0.5 if dtype == "bf16" else 1.0
