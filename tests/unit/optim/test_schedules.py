"""Schedules against their published formulas, and the properties that a resume relies on."""

from __future__ import annotations

import math

import pytest

from pretrain.optim.schedules import build_schedule
from tests.distributed.training import experiment


def _published(name: str, step: int, total: int, warmup: int, base: float, end: float) -> float:
    """big_vision ``utils.create_learning_rate_schedule``, written from its definition."""
    progress = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
    lr = {
        "linear": end + (base - end) * (1 - progress),
        "cosine": end + 0.5 * (base - end) * (1 + math.cos(math.pi * progress)),
        "constant": base,
    }[name]
    return lr * min(1.0, step / warmup) if warmup else lr


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_equals_the_published_formula(name: str, warmup: int) -> None:
    end = {} if name == "constant" else {"end_lr": 1e-5}
    schedule = {"name": name, "warmup": f"{warmup} steps", **end}
    lr = build_schedule(experiment(optim__schedule=schedule))
    for step in range(41):
        wanted = _published(name, step, 40, warmup, 3e-3, end.get("end_lr", 0.0))
        assert lr(step) == pytest.approx(wanted, rel=1e-12, abs=1e-18), step


def test_ends_and_peak() -> None:
    lr = build_schedule(experiment(optim__schedule={"name": "linear", "warmup": "10 steps", "end_lr": 1e-5}))
    assert lr(0) == 0.0 and lr(10) == pytest.approx(3e-3) and lr(40) == pytest.approx(1e-5)
