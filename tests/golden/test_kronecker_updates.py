"""Our Shampoo and SOAP against published ones, recorded by ``make/kronecker_updates.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.config.schema.optim.choice import Optim
from pretrain.optim.groups import set_lr
from pretrain.optim.optimizers import build_optimizer

TRACES = Path(__file__).parent / "traces" / "kronecker_updates.npz"
NAMES = ("first", "second")
COMMON = {
    "lr": 0.02,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "max_preconditioner_dim": 12,  # blocks with a remainder, and one matrix of two blocks
    "precondition_frequency": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "shampoo": {"name": "shampoo", "epsilon": 1e-3},
    "shampoo, momentum": {
        "name": "shampoo",
        "epsilon": 1e-3,
        "momentum": 0.8,
        "use_nesterov": True,
        "start_preconditioning_step": 5,
    },
    "soap": {"name": "soap"},
}


class Layers(nn.Module):
    """Two kernels, and a head that gets no gradient."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(*reversed(start[name].shape), bias=False) for name in NAMES)
        self.head = nn.Linear(2, 2)
        for name, tensor in start.items():
            self.get_parameter(f"{name}.weight").data.copy_(tensor)

    def layer_ids(self) -> dict[str, int]:
        """The head is above the others."""
        return {name: int(name.startswith("head")) for name, _ in self.named_parameters()}


@pytest.fixture(scope="module")
def traces() -> dict[str, Tensor]:
    with np.load(TRACES) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("case", CASES)
def test_twelve_updates_equal_the_published_ones(traces: dict[str, Tensor], case: str) -> None:
    """In blocks, with decompositions every third update. The first learning rate is 0 for SOAP, which skips one.

    SOAP divides every component in the eigenbasis by its own size, so small ones pass on their rounding.
    """
    family, settings = case.partition(",")[0], COMMON | CASES[case]
    model = Layers({name: traces[f"{family}/start/{name}"] for name in NAMES})
    optimizer = build_optimizer(model, TypeAdapter(Optim).validate_python(settings))
    gradients = {name: traces[f"{family}/gradient/{name}"].float() for name in NAMES}
    seen = []
    for step in range(12):
        set_lr(optimizer.param_groups, 0.0 if family == "soap" and step == 0 else 0.02)
        for name in NAMES:
            model.get_parameter(f"{name}.weight").grad = gradients[name][step]
        optimizer.step()
        if step + 1 in (6, 12):
            seen.append({name: model.get_parameter(f"{name}.weight").detach().clone() for name in NAMES})
    for name in NAMES:
        found = torch.stack([entry[name] for entry in seen])
        near = 5e-5 if family == "soap" else 3e-6
        torch.testing.assert_close(found, traces[f"{case}/weights/{name}"], rtol=0, atol=near, msg=f"{case} {name}")
        assert (found[1] - traces[f"{family}/start/{name}"]).abs().max() > 0.1  # 12 updates of 0.02
