"""Our schedules against big_vision's own rates, recorded by ``make/big_vision_schedules.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.optim.schedules import build_schedule
from tests.distributed.training import experiment

TRACES = Path(__file__).parent / "traces" / "big_vision_schedules.npz"
OURS: dict[str, dict[str, Any]] = {
    "cosine": {"name": "cosine", "warmup": "7 steps"},
    "linear": {"name": "linear", "warmup": "7 steps", "end_lr": 1e-5},
    "polynomial": {"name": "polynomial", "warmup": "3 steps", "end_lr": 1e-4, "power": 3},
    "rsqrt": {"name": "rsqrt", "timescale": "10 steps", "cooldown": "8 steps"},
    "rsqrt_shift": {
        "name": "rsqrt",
        "timescale": "10 steps",
        "shift": "3 steps",
        "warmup": "5 steps",
        "cooldown": "8 steps",
    },
    "rsqrt_long_shift": {"name": "rsqrt", "timescale": "10 steps", "shift": "12 steps", "warmup": "9 steps"},
}


@pytest.mark.parametrize("name", OURS)
def test_every_rate_equals_big_visions(name: str) -> None:
    with np.load(TRACES) as file:
        wanted = file[name]
    rate = build_schedule(experiment(optim__schedule=OURS[name]))  # 40 steps to 3e-3
    assert [rate(step) for step in range(41)] == pytest.approx(wanted.tolist(), rel=2e-6, abs=1e-9)
