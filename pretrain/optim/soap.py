"""SOAP: Adam in the eigenbasis of Shampoo's Kronecker factors, of each block of a matrix.

The basis is refreshed by one step of orthogonal iteration, and the second moment moves along with its columns. As in
the authors' code the first update only makes the basis, so that no gradient is seen in a basis made from it.

Source: Vyas et al. (2409.11321) and their implementation at github.com/nikhilvyas/SOAP, which has no blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.kronecker import SoapConfig
from pretrain.optim.kronecker import FACTORS, KroneckerRule, eigh, require_finite
from pretrain.optim.matrices import Matrices
from pretrain.optim.owned import State

BASES = "eigenbases"


class Soap(KroneckerRule):
    """SOAP's update of a complete tensor, which consists of one or more matrices.

    Args:
        config: the settings.
        matrices: name → the matrices of a parameter (see ``matrices.matrices_of``).
    """

    def __init__(self, config: SoapConfig, matrices: Mapping[str, Matrices]) -> None:
        super().__init__(config, matrices)
        self._config = config

    def new_state(self, name: str, tensor: Tensor) -> State:
        """See ``CompleteRule.new_state``. The second moment is in the eigenbasis."""
        first, second = (torch.zeros(tensor.shape, device=tensor.device) for _ in range(2))
        factors, bases = (self._blocks[name].new_squares(tensor.device) for _ in range(2))
        return {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second, FACTORS: factors, BASES: bases}

    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """See ``CompleteRule.change``."""
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]) - 1, self._config.betas
        if step == 0:
            self.average(name, grad, state, beta2)
            self.refresh(name, state, BASES, lambda factor: eigh(factor)[1].flip(1))
            return torch.zeros_like(grad)
        state["exp_avg"].lerp_(grad, 1 - beta1)
        update = self._in_eigenbasis(name, grad, state)
        self.average(name, grad, state, beta2)
        if step % self._config.precondition_frequency == 0:
            self._rotate(name, state)
        rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return update.mul_(-rate * (1 - group["lr"] * group["weight_decay"]))  # theirs decays what it has updated

    def _in_eigenbasis(self, name: str, grad: Tensor, state: State) -> Tensor:
        """Adam's direction without the corrections of its moments; updates the second moment."""
        blocks, update, beta2 = self._blocks[name], torch.empty_like(grad), self._config.betas[1]
        tensors = (blocks.parts(one) for one in (grad, state["exp_avg"], state["exp_avg_sq"], update))
        for part, first, second, target, (left, right) in zip(*tensors, blocks.squares(state[BASES]), strict=True):
            rotated = left.mT @ part @ right
            second.lerp_(rotated.square_(), 1 - beta2)
            scaled = (left.mT @ first @ right).div_(second.sqrt().add_(self._config.eps))
            target.copy_(left @ scaled @ right.mT)
        return update

    def _rotate(self, name: str, state: State) -> None:
        """One step of orthogonal iteration of each basis, its columns in descending order of their eigenvalues."""
        blocks = self._blocks[name]
        squares = (blocks.squares(state[key]) for key in (FACTORS, BASES))
        for second, factors, bases in zip(blocks.parts(state["exp_avg_sq"]), *squares, strict=True):
            for axis, (factor, basis) in enumerate(zip(factors, bases, strict=True)):
                require_finite(factor, f"a factor of {name}")
                product = factor @ basis
                order = (basis * product).sum(0).argsort(descending=True)
                second.copy_(second.index_select(axis, order))
                basis.copy_(torch.linalg.qr(product[:, order]).Q)
