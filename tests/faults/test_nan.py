"""A gradient that is not finite on one rank: no rank updates, it is counted, and training continues.

One row per stage, precision and backend, since DeepSpeed skips silently in some and writes the NaN in others.
"""

from __future__ import annotations

import math

import pytest

from tests.distributed.test_equality_laws import settings
from tests.distributed.training import train_with
from tests.pool import Pool

ROWS = [
    (stage, precision, "deepspeed")
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "autocast")
    if (stage, precision) != (0, "bf16")
]
ROWS += [(0, "fp32", "accelerate"), (0, "autocast", "accelerate")]
ROWS += [(0, precision, "fsdp2") for precision in ("fp32", "bf16", "autocast")]
FIRST = (1, "fp32", "deepspeed")
SLOW = [(0, "fp32", "fsdp2"), (0, "autocast", "fsdp2")]
BAD_STEP = 2


@pytest.mark.parametrize(
    ("stage", "precision", "kind"),
    [
        pytest.param(*row, marks=pytest.mark.quick if row == FIRST else pytest.mark.slow if row in SLOW else ())
        for row in ROWS
    ],
)
@pytest.mark.parametrize("micro", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_nan_on_one_rank(pool2: Pool, stage: int, precision: str, kind: str, micro: int) -> None:
    config = settings(stage, micro, precision=precision)
    results = pool2.run(train_with, config, kind, {"steps": 6, "poison_at": BAD_STEP})
    for result in results:
        assert result["applied"] == {step: step != BAD_STEP for step in range(6)}
        assert result["num_updates"] == 5
        assert not math.isfinite(result["norms"][BAD_STEP])
        assert all(math.isfinite(loss) for step, loss in result["losses"].items() if step != BAD_STEP)
        assert all(math.isfinite(value) for value in result["weights"].values())


def test_the_skipped_step_leaves_no_trace_in_the_optimiser(pool2: Pool) -> None:
    """After a skip every stage continues with the same losses: neither weights, moments nor counters moved."""
    runs = {}
    for stage in (0, 1, 3):
        result = pool2.run(train_with, settings(stage, 4), "deepspeed", {"steps": 8, "poison_at": BAD_STEP})[0]
        runs[stage] = [loss for step, loss in result["losses"].items() if step != BAD_STEP]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5) and runs[3] == pytest.approx(runs[0], rel=1e-5)
