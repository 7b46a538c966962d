"""Our schedule-free AdamW against Meta's own, recorded by ``make/schedule_free_updates.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from pretrain.config.schema.optim.choice import Optim
from pretrain.optim import elementwise
from pretrain.optim.groups import set_lr
from pretrain.optim.optimizers import build_optimizer
from pretrain.optim.schedule_free import ScheduleFreeAdamW
from tests.golden.test_optax_updates import NAMES, Layer

TRACES = Path(__file__).parent / "traces" / "schedule_free_updates.npz"


@pytest.fixture(scope="module")
def traces() -> dict[str, Any]:
    with np.load(TRACES) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("warmup", [0, 6])
def test_thirty_updates_equal_those_of_the_package(
    traces: dict[str, Tensor], warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are trained and their average, also where a tensor is updated in runs."""
    monkeypatch.setattr(elementwise, "CHUNK", 77)
    lr, decay = float(traces["lr"]), float(traces["decay"])
    model = Layer({ours: traces[f"start/{theirs}"] for ours, theirs in NAMES.items()})
    settings = {"lr": lr, "weight_decay": decay, "betas": traces["betas"].tolist(), "schedule": {"name": "constant"}}
    config = TypeAdapter(Optim).validate_python({"name": "schedule_free"} | settings)

    def schedule(update: int) -> float:
        return lr * min(1.0, (update + 1) / warmup) if warmup else lr

    optimizer = build_optimizer(model, config, schedule=schedule)
    assert isinstance(optimizer, ScheduleFreeAdamW)
    for step in range(30):
        for key, parameter in model.named_parameters():
            parameter.grad = traces[f"gradient/{NAMES[key]}"][step].float()
        set_lr(optimizer.param_groups, schedule(step))
        optimizer.step()
        if step + 1 in (10, 30):
            place, trained = (step + 1) // 30, {key: one.detach().clone() for key, one in model.named_parameters()}
            optimizer.swap()
            for key, average in model.named_parameters():
                of = f"warmup {warmup}/{{}}/{NAMES[key]}"
                for ours, theirs in ((trained[key], "trained"), (average.detach(), "average")):
                    wanted = traces[of.format(theirs)][place]
                    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6, msg=f"{step} {key} {theirs}")
            optimizer.swap()
            assert all(torch.equal(one, trained[key]) for key, one in model.named_parameters())
