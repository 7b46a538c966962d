"""Every kind of model, objective, position embedding, pooling, policy and optimiser trains on a simulated GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.steps import CASES

# The only read of a step that is ours: the norm, which decides whether to update.
NORM = (
    "item in pretrain/engine/backend.py:clip_reduced_gradients",
    "item in pretrain/engine/deepspeed_backend.py:step",
)


@pytest.mark.parametrize("case", CASES)
def test_trains_without_waiting_for_the_device(simulate: Any, case: str) -> None:
    found = simulate("steps")[case]
    assert found["error"] is None, found["trace"]
    ours = {wait: count for wait, count in found["waits"].items() if " in deepspeed/" not in wait}
    assert sum(ours.values()) <= 1 and set(ours) <= set(NORM), ours
