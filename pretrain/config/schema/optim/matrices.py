"""Optimisers of matrices, with AdamW for all other tensors: Muon, and what all of them have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, Probability
from pretrain.config.schema.optim.base import KeptDtype, OptimConfig


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
