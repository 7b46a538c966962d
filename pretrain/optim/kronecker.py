"""Kronecker factors of gradients, which Shampoo and SOAP share: of each block G of a matrix, averages of G Gᵀ and Gᵀ G.

The square matrices of all blocks of a parameter are one flat tensor, so that a checkpoint has them as one slice.

Legend: R rows of a block · C columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pretrain.config.schema.optim.kronecker import KroneckerConfig
from pretrain.names import tell
from pretrain.optim.matrices import Matrices, blocks_of
from pretrain.optim.owned import CompleteRule, State

FACTORS = "factors"
MAX_FAILURES = 3  # failed decompositions in a row that are tolerated, the default of Meta's implementation

Pair = tuple[Tensor, Tensor]


class FactorError(ArithmeticError):
    """A factor cannot be decomposed, so that a parameter cannot be updated."""


class Blocks:
    """The blocks of a parameter, which consists of one or more matrices.

    Args:
        matrices: the parameter's (see ``matrices.matrices_of``).
        largest: most rows and columns of a block.
    """

    def __init__(self, matrices: Matrices, largest: int) -> None:
        self._matrices, self._blocks = matrices, blocks_of(matrices, largest)

    def parts(self, tensor: Tensor) -> list[Tensor]:
        """Each block (R, C) of a contiguous tensor with the size of the parameter, in the same memory."""
        view = tensor.view(self._matrices)
        return [view[block.matrix, block.rows, block.columns] for block in self._blocks]

    def new_squares(self, device: torch.device) -> Tensor:
        """Zeros for two square matrices of each block, flat."""
        return torch.zeros(sum(block.height**2 + block.width**2 for block in self._blocks), device=device)

    def squares(self, flat: Tensor) -> list[Pair]:
        """The square matrices (R, R) and (C, C) of each block, in the memory of a tensor of ``new_squares``."""
        sides = [side for block in self._blocks for side in (block.height, block.width)]
        views = [one.view(side, side) for one, side in zip(flat.split([n * n for n in sides]), sides, strict=True)]
        return list(zip(views[::2], views[1::2], strict=True))


class KroneckerRule(CompleteRule):
    """The part of Shampoo's and SOAP's updates that concerns the factors.

    Args:
        config: the settings.
        matrices: name → the matrices of a parameter (see ``matrices.matrices_of``).
    """

    def __init__(self, config: KroneckerConfig, matrices: Mapping[str, Matrices]) -> None:
        self._matrices, self._kronecker = matrices, config
        self._blocks = {name: Blocks(of_one, config.max_preconditioner_dim) for name, of_one in matrices.items()}
        self._failures: dict[str, int] = {}  # parameter → decompositions in a row that failed

    def cost(self, name: str, shape: tuple[int, ...]) -> int:
        """See ``CompleteRule.cost``: operations."""
        count, rows, columns = self._matrices[name]
        return count * self._kronecker.complete_cost(rows, columns)

    def average(self, name: str, grad: Tensor, state: State, beta: float) -> None:
        """Updates the factors' averages with a gradient."""
        blocks = self._blocks[name]
        for part, (left, right) in zip(blocks.parts(grad), blocks.squares(state[FACTORS]), strict=True):
            left.addmm_(part, part.mT, beta=beta, alpha=1 - beta)
            right.addmm_(part.mT, part, beta=beta, alpha=1 - beta)

    def refresh(self, name: str, state: State, key: str, decomposed: Callable[[Tensor], Tensor]) -> None:
        """Decomposes all factors into ``state[key]``. Where that fails, the result of the time before is kept.

        Args:
            name: the parameter's.
            state: its state.
            key: of what is kept of the factors.
            decomposed: a factor (N, N) → what is kept of it (N, N).

        Raises:
            FactorError: a factor or a result is not finite, or decompositions failed too often.
        """
        blocks, failure = self._blocks[name], None
        for pair, kept in zip(blocks.squares(state[FACTORS]), blocks.squares(state[key]), strict=True):
            for factor, result in zip(pair, kept, strict=True):
                require_finite(factor, f"a factor of {name}")
                try:
                    found = decomposed(factor)
                except torch.linalg.LinAlgError as error:
                    failure = error
                    continue
                require_finite(found, f"the decomposition of a factor of {name}")
                result.copy_(found)
        self._failures[name] = 0 if failure is None else self._failures.get(name, 0) + 1
        if failure is not None:
            self._report(name, int(state["step"]), failure)

    def _report(self, name: str, step: int, failure: Exception) -> None:
        count = self._failures[name]
        text = f"optim: update {step}: the eigendecomposition of a factor of {name} failed ({failure})"
        if count > MAX_FAILURES:
            advice = "lower optim.lr or resume from an earlier checkpoint"
            raise FactorError(f"{text}, for the {count}th time in a row; {advice}")
        tell(
            f"{text}; its last result is used again, failure {count} of at most {MAX_FAILURES} in a row",
            file=sys.stderr,
            flush=True,
        )


def eigh(matrix: Tensor) -> Pair:
    """Eigenvalues (N,), ascending, and eigenvectors (N, N) of a symmetric matrix; in double precision if fp32 fails.

    Raises:
        LinAlgError: it did not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(matrix.double())
        return values.to(matrix.dtype), vectors.to(matrix.dtype)


def require_finite(tensor: Tensor, what: str) -> None:
    """Raises ``FactorError`` if a value is not finite. On a GPU the host waits for it."""
    if not bool(torch.isfinite(tensor).all()):
        raise FactorError(
            f"{what} is not finite: the squares of its gradients are too large, or the run has diverged; lower "
            "optim.lr, set optim.clip_grad, or resume from an earlier checkpoint"
        )
