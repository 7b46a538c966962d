"""Muon: momentum whose singular values are set to about one.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the quintic
Newton-Schulz iteration given there. Scaling ``moonlight``: Liu et al. (2502.16982), section 2.2; ``spectral``:
Bernstein, "Deriving Muon" (2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.config.schema.optim.matrices import MuonConfig
from pretrain.optim.matrices import Matrices
from pretrain.optim.owned import CompleteRule, State

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7  # smallest norm of a matrix before the iteration


class Muon(CompleteRule):
    """Muon's update of a complete tensor, which consists of one or more matrices.

    Args:
        config: the settings.
        matrices: name → the matrices of a parameter (see ``matrices.matrices_of``).
    """

    def __init__(self, config: MuonConfig, matrices: Mapping[str, Matrices]) -> None:
        self._config, self._matrices = config, matrices
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.orthogonalize_dtype]

    def new_state(self, name: str, tensor: Tensor) -> State:
        """See ``CompleteRule.new_state``."""
        return {"momentum_buffer": torch.zeros(tensor.shape, device=tensor.device)}

    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """See ``CompleteRule.change``."""
        momentum = self._config.momentum
        average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        direction = torch.lerp(grad, average, momentum) if self._config.nesterov else average
        count, rows, columns = self._matrices[name]
        update = orthogonalized(direction.reshape(count, rows, columns).to(self._dtype), self._config.num_iterations)
        scale = SCALES[self._config.scale](rows, columns)
        return update.float().mul(-group["lr"] * scale).reshape(grad.shape).contiguous()


SCALES: dict[str, Callable[[int, int], float]] = {  # of rows (outputs) and columns (inputs)
    "moonlight": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "spectral": lambda rows, columns: math.sqrt(rows / columns),
}


def orthogonalized(matrices: Tensor, num_iterations: int) -> Tensor:
    """Matrices (N, R, C) with the singular vectors of the given ones, and singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrices if matrices.size(1) <= matrices.size(2) else matrices.mT
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp_min(EPSILON)
    for _ in range(num_iterations):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrices.size(1) <= matrices.size(2) else wide.mT
