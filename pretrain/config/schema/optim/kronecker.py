"""Optimisers that keep Kronecker factors of matrices: Shampoo and SOAP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveFloat, Probability
from pretrain.config.schema.optim.matrices import MatrixConfig


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
