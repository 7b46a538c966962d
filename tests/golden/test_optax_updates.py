"""Our updates against optax's own, recorded by ``make/optax_updates.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.config.schema.optim.choice import Optim
from pretrain.optim import elementwise
from pretrain.optim.optimizers import build_optimizer

TRACES = Path(__file__).parent / "traces" / "optax_updates.npz"


NAMES = {"layer.weight": "kernel", "layer.bias": "bias"}  # the kernel decays


class Layer(nn.Module):
    """The two tensors of the traces."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        out, into = start["layer.weight"].shape
        self.layer = nn.Linear(into, out)
        self.load_state_dict(start)


@pytest.fixture(scope="module")
def traces() -> dict[str, Any]:
    with np.load(TRACES) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def updated(traces: dict[str, Tensor], name: str, dtype: str) -> dict[str, Tensor]:
    """Our weights after updates 10 and 30, (2, ...) each."""
    model = Layer({ours: traces[f"start/{theirs}"] for ours, theirs in NAMES.items()})
    settings = {"lr": float(traces["lr"]), "weight_decay": float(traces["decay"])}
    config = TypeAdapter(Optim).validate_python({"name": name, "momentum_dtype": dtype} | settings)
    optimizer, seen = build_optimizer(model, config), []
    for step in range(30):
        for key, parameter in model.named_parameters():
            parameter.grad = traces[f"gradient/{NAMES[key]}"][step].float()
        optimizer.step()
        if step + 1 in (10, 30):
            seen.append({NAMES[key]: parameter.detach().clone() for key, parameter in model.named_parameters()})
    return {key: torch.stack([entry[key] for entry in seen]) for key in ("kernel", "bias")}


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize(("dtype", "theirs"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_thirty_updates_equal_optaxs(
    traces: dict[str, Tensor], name: str, dtype: str, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a tensor is updated in runs."""
    monkeypatch.setattr(elementwise, "CHUNK", 77)
    for key, ours in updated(traces, name, dtype).items():
        torch.testing.assert_close(ours, traces[f"{name}/{theirs}/{key}"], rtol=1e-5, atol=1e-5)


def test_the_decay_of_a_bf16_moment_is_a_bf16_number(traces: dict[str, Tensor]) -> None:
    """With 0.9 in place of 0.8984375 the steps would be 1.6 % longer; fp32 moments show how much longer."""
    for name in ("adamw", "sgd"):
        lengths = [
            (updated(traces, name, dtype)["kernel"][1] - traces["start/kernel"]).norm() for dtype in ("fp32", "bf16")
        ]
        wanted = [
            (traces[f"{name}/{dtype}/kernel"][1] - traces["start/kernel"]).norm() for dtype in ("float32", "bfloat16")
        ]
        assert float(wanted[1] / wanted[0]) < 0.993
        assert float(lengths[1] / lengths[0]) == pytest.approx(float(wanted[1] / wanted[0]), rel=1e-3)
