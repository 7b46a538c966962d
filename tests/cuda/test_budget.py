"""No training step waits for the device or communicates more than its budget, and no run compiles more graphs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pretrain.sharding.step import step_of
from tests.cuda import graphs
from tests.cuda.budget import FILE, of_run, of_step
from tests.cuda.group import NUMBERS
from tests.cuda.layouts import CASES, NUM_SAMPLES, PER_RANK, WORLD
from tests.unit.data.sets import experiment

BUDGET = json.loads(FILE.read_text())
CHANGED = "if that is meant, run python -m tests.cuda.budget and commit its file"
MOST_GRAPHS = 3


@pytest.mark.parametrize("layout", CASES)
def test_a_step_keeps_to_its_budget(simulate: Any, layout: str) -> None:
    found = of_step(simulate("layouts")[layout])
    assert BUDGET[layout] | found == BUDGET[layout], CHANGED


@pytest.mark.parametrize("layouts", [("ZeRO-1 bf16 × 1",), pytest.param((), id="all", marks=pytest.mark.slow)])
def test_a_compiled_run_keeps_to_its_graphs(on_the_cpu: Any, layouts: tuple[str, ...]) -> None:
    """Training, the probe batch of a checkpoint, and evaluation: at eight Dynamo gives up compiling."""
    found = {layout: of_run(one)["graphs"] for layout, one in on_the_cpu("graphs", *layouts).items()}
    assert found == {layout: BUDGET[layout]["graphs"] for layout in layouts or graphs.CASES}, CHANGED
    assert set(found.values()) <= {1, 2, MOST_GRAPHS}


@pytest.mark.parametrize("layout", BUDGET)
def test_one_wait_of_a_step_is_ours(layout: str) -> None:
    ours = {wait: count for wait, count in BUDGET[layout]["waits"].items() if " in deepspeed/" not in wait}
    assert ours == {"tolist in pretrain/engine/boundary.py:_gathered": 1}


@pytest.mark.parametrize("layout", CASES)
def test_the_planned_bytes_are_those_of_the_step(simulate: Any, layout: str) -> None:
    chosen = CASES[layout]
    step = step_of(experiment("none", NUM_SAMPLES, **chosen.settings), WORLD, PER_RANK // chosen.accumulation)
    planned: Counter[str] = Counter()
    for one in chosen.sharding.traffic(step):
        planned[one.kind] += one.payload
    calls = simulate("layouts")[layout]["collectives"]
    assert {kind: sum(sizes) for kind, sizes in calls.items() if not kind.endswith(NUMBERS)} == planned
