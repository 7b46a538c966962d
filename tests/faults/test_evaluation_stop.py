"""A wish to stop during a long evaluation: all ranks leave it at the same batch, and the state is saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.faults.job import Faults, checkpoint_steps, job
from tests.integration.small_run import curve
from tests.pool import Pool


@pytest.mark.parametrize(
    ("settings", "step"), [(["evaluation.every=6 steps"], 6), ([], 12)], ids=["on the way", "at the end"]
)
def test_stopped_in_an_evaluation(digits: None, pool2: Pool, tmp_path: Path, settings: list[str], step: int) -> None:
    settings = [*settings, "evaluation.micro_batch_size=4"]  # 24 batches for each rank
    results = pool2.run(job, str(tmp_path), settings, Faults(stop_in_evaluation=(1, 5)))
    assert [(each["outcome"], each["step"]) for each in results] == [("requeue", step)] * 2
    run = tmp_path / "run"
    assert step in checkpoint_steps(run) and not read_metrics(run / "metrics.jsonl", "eval")
    assert pool2.run(job, str(tmp_path), settings)[0]["outcome"] == "complete"
    assert sorted(read_metrics(run / "metrics.jsonl", "eval")) == sorted({step, 12}), "what was due is measured first"
    assert sorted(curve(run)) == list(range(1, 13))
