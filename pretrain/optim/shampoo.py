"""Shampoo: gradients of blocks of matrices, multiplied from both sides by inverse roots of their Kronecker factors.

The direction L^(-1/4) G R^(-1/4) gets the norm that Adam's would have (grafting). Before
``start_preconditioning_step`` the direction is Adam's.

Source: Gupta et al. (1802.09568); Shi et al. (2309.06497) and their implementation, ``distributed_shampoo`` at
facebookresearch/optimizers, with ``RootInvShampooPreconditionerConfig`` and ``AdamPreconditionerConfig`` for grafting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.kronecker import ShampooConfig
from pretrain.optim.kronecker import FACTORS, KroneckerRule, eigh
from pretrain.optim.matrices import Matrices
from pretrain.optim.owned import State

ROOTS = "inverse_roots"
SMALLEST_NORM = 1e-16  # added to the norm of a direction


class Shampoo(KroneckerRule):
    """Shampoo's update of a complete tensor, which consists of one or more matrices.

    Args:
        config: the settings.
        matrices: name → the matrices of a parameter (see ``matrices.matrices_of``).
    """

    def __init__(self, config: ShampooConfig, matrices: Mapping[str, Matrices]) -> None:
        super().__init__(config, matrices)
        self._config = config

    def new_state(self, name: str, tensor: Tensor) -> State:
        """See ``CompleteRule.new_state``."""
        keys = ("exp_avg", "exp_avg_sq", *(["momentum_buffer"] if self._config.momentum else []))
        state = {"step": torch.zeros(())} | {key: torch.zeros(tensor.shape, device=tensor.device) for key in keys}
        blocks = self._blocks[name]
        state |= {key: blocks.new_squares(tensor.device) for key in (FACTORS, ROOTS)}
        for root in (one for pair in blocks.squares(state[ROOTS]) for one in pair):
            root.fill_diagonal_(1.0)  # used if the first decomposition fails
        return state

    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """See ``CompleteRule.change``."""
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), self._config.betas
        correction2 = 1 - beta2**step
        self.average(name, grad, state, beta2)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if self._config.refreshes_at(step):
            epsilon = self._config.epsilon
            self.refresh(name, state, ROOTS, lambda factor: inverse_fourth_root(factor / correction2, epsilon))
        average = state["exp_avg"].lerp_(grad, 1 - beta1) / (1 - beta1**step)
        update = average / (second / correction2).sqrt_().add_(self._config.eps)  # Adam's
        if step >= self._config.first_refresh:
            self._precondition(name, average, update, state)
        if self._config.momentum:
            assert weights is not None
            update.add_(weights, alpha=group["weight_decay"])
            buffer = state["momentum_buffer"].mul_(self._config.momentum).add_(update)
            update = update.add_(buffer, alpha=self._config.momentum) if self._config.use_nesterov else buffer.clone()
        return update.mul_(-group["lr"])

    def _precondition(self, name: str, average: Tensor, update: Tensor, state: State) -> None:
        """Replaces each block of Adam's update by Shampoo's direction with the same norm."""
        blocks = self._blocks[name]
        for part, grafted, (left, right) in zip(
            blocks.parts(average), blocks.parts(update), blocks.squares(state[ROOTS]), strict=True
        ):
            direction = left @ part @ right
            norm = torch.linalg.vector_norm(direction) + SMALLEST_NORM
            grafted.copy_(direction.mul_(torch.linalg.vector_norm(grafted) / norm))


def inverse_fourth_root(matrix: Tensor, epsilon: float) -> Tensor:
    """A^(-1/4) of a positive semi-definite matrix (N, N), to which ``epsilon`` is added.

    Where rounding leaves an eigenvalue below ``epsilon``, all of them are shifted so that it is ``epsilon``.
    """
    values, vectors = eigh(matrix + epsilon * torch.eye(len(matrix), device=matrix.device))
    smallest = values.min()
    values = torch.where(smallest < epsilon, values - smallest + epsilon, values)
    return vectors * values.pow(-0.25) @ vectors.mT
