"""Writes ``traces/kronecker_updates.npz``: weights after updates of Meta's Distributed Shampoo and of a published SOAP.

Run by hand from the repository's root, in an environment with ``pip install torch==2.14.1 pytorch-optimizer==4.1.0``
and a checkout of github.com/facebookresearch/optimizers (commit f606606):
``PYTHONPATH=PATH/TO/optimizers python -m tests.golden.make.kronecker_updates``.

pytorch-optimizer's SOAP is the authors' (github.com/nikhilvyas/SOAP), which has no blocks, so each block is a parameter
here. Gradients for SOAP are square and well-conditioned, since rounding decides the eigenvectors of nearly equal
eigenvalues.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed_shampoo import AdamPreconditionerConfig, DistributedShampoo, SingleDeviceDistributedConfig
from distributed_shampoo.shampoo_types import ClassicMomentumConfig
from pytorch_optimizer import SOAP
from torch import Tensor

TARGET = Path(__file__).parent.parent / "traces" / "kronecker_updates.npz"
STEPS, SEEN, LR, DECAY, BETAS, BLOCK = 12, (6, 12), 0.02, 0.1, (0.9, 0.95), 12
SHAPES = {"shampoo": {"first": (16, 20), "second": (28, 8)}, "soap": {"first": (12, 12), "second": (24, 12)}}

Tensors = dict[str, Tensor]


def main() -> None:
    """Writes the file again."""
    random = np.random.RandomState(0)
    arrays: dict[str, np.ndarray] = {}
    for family, shapes in SHAPES.items():
        start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        gradients = {name: gradients_of(random, shape).astype(np.float16) for name, shape in shapes.items()}
        arrays |= {f"{family}/start/{name}": array for name, array in start.items()}
        arrays |= {f"{family}/gradient/{name}": array for name, array in gradients.items()}
        for case, weights in CASES[family](tensors(start), tensors(gradients)).items():
            arrays |= {f"{case}/weights/{name}": tensor.numpy() for name, tensor in weights.items()}
    np.savez_compressed(TARGET, **arrays)


def gradients_of(random: np.random.RandomState, shape: tuple[int, int]) -> np.ndarray:
    """(STEPS, R, C): noise, and in every square of the size of a block different singular values."""
    rows, columns = shape
    ramp = np.tile(np.diag(1.0 + np.arange(BLOCK) / 2.0), (rows // BLOCK + 1, columns // BLOCK + 1))[:rows, :columns]
    return ramp * random.choice([-1.0, 1.0], (STEPS, 1, 1)) + 0.2 * random.standard_normal((STEPS, rows, columns))


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    """The arrays in fp32."""
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}


def shampoo(start: Tensors, gradients: Tensors) -> dict[str, Tensors]:
    """Meta's, with matrices as they are; also with Nesterov's momentum and a later start."""
    common: dict[str, Any] = {
        "lr": LR,
        "betas": BETAS,
        "epsilon": 1e-3,
        "weight_decay": DECAY,
        "max_preconditioner_dim": BLOCK,
        "precondition_frequency": 3,
        "grafting_config": AdamPreconditionerConfig(beta2=BETAS[1], epsilon=1e-8),
        "distributed_config": SingleDeviceDistributedConfig(target_parameter_dimensionality=2),
    }
    momentum = ClassicMomentumConfig(momentum=0.8, use_nesterov=True)
    cases = {
        "shampoo": {},
        "shampoo, momentum": {"iterate_averaging_config": momentum, "start_preconditioning_step": 5},
    }
    found = {}
    for case, more in cases.items():
        weights = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
        optimizer = DistributedShampoo(weights.values(), **common | more)
        found[case] = collected(run(optimizer, weights, gradients))
    return found


def soap(start: Tensors, gradients: Tensors) -> dict[str, Tensors]:
    """SOAP with each block as a parameter; the learning rate of the first update, which is none, is 0."""
    weights = {
        f"{name}/{index}": torch.nn.Parameter(block.clone())
        for name, tensor in start.items()
        for index, block in enumerate(tensor.split(BLOCK))
    }
    parts = {
        f"{name}/{index}": block
        for name, tensor in gradients.items()
        for index, block in enumerate(tensor.split(BLOCK, dim=1))
    }
    optimizer = SOAP(weights.values(), lr=LR, betas=BETAS, weight_decay=DECAY, precondition_frequency=3)
    seen = list(run(optimizer, weights, parts, first_lr=0.0))
    joined = [
        {name: torch.cat([one[key] for key in one if key.startswith(f"{name}/")]) for name in start} for one in seen
    ]
    return {"soap": collected(iter(joined))}


def run(optimizer: Any, weights: Tensors, gradients: Tensors, first_lr: float = LR) -> Iterator[Tensors]:
    """The weights after the updates SEEN."""
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR if step else first_lr
        for name, parameter in weights.items():
            parameter.grad = gradients[name][step].clone()
        optimizer.step()
        if step + 1 in SEEN:
            yield {name: parameter.detach().clone() for name, parameter in weights.items()}


def collected(seen: Iterator[Tensors]) -> Tensors:
    """Name → (len(SEEN), R, C)."""
    entries = list(seen)
    return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}


CASES = {"shampoo": shampoo, "soap": soap}

if __name__ == "__main__":
    main()
