"""A job on images at their own aspect ratio: interrupted, and resumed by another sharding on other ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.faults.job import job
from tests.integration.small_run import curve
from tests.pool import Pool
from tests.unit.data.sets import NUM_CLASSES, write_set

NUM = 44
LENGTH = 20


def settings(folder: Path) -> list[str]:
    shards = write_set(folder / "set", [NUM], varied=True)
    return [
        f"data={{shards: {shards}, num_samples: {NUM}, num_classes: {NUM_CLASSES}, lanes: 4}}",
        "data.train_transform=null",  # nothing of the demo's transforms stays
        "data.eval_transform=null",
        f"data.train_transform={{crop: native, max_tokens: {LENGTH}, min_area: 0.3, hflip: 0.5}}",
        f"data.eval_transform={{resize: native, max_tokens: {LENGTH + 4}}}",
        f"evaluation.sets={{val: {{shards: {shards}, num_samples: {NUM}}}}}",
        "model.head_init=normal",
        "global_batch_size=16",
        "optim.schedule.name=constant",
        "resume.allow_changes=[duration]",
    ]


TOKENS = [f"data.train_transform={{crop: native, max_tokens: [{LENGTH}, {LENGTH // 2}]}}", "batch_unit=8"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], TOKENS], ids=["one length", "constant tokens"])
def test_a_job_resumes_with_another_sharding(pool1: Pool, pool2: Pool, tmp_path: Path, more: list[str]) -> None:
    given = [*settings(tmp_path), *more]
    whole = pool1.run(job, str(tmp_path / "whole"), given)[0]
    assert whole["outcome"] == "complete", whole["reason"]
    first = pool2.run(job, str(tmp_path / "parts"), [*given, "duration=8 steps", "cluster.zero_stage=3"])[0]
    assert first["step"] == 8, first["reason"]
    rest = pool1.run(job, str(tmp_path / "parts"), [*given, "cluster.backend=fsdp2", "cluster.micro_batch_size=4"])[0]
    assert rest["outcome"] == "complete", rest["reason"]
    straight, parts = (curve(tmp_path / name / "run", "loss", "batch_digest", "padding") for name in ("whole", "parts"))
    assert sorted(straight) == sorted(parts) == list(range(1, 13))
    for step, (loss, digest, padding) in straight.items():
        assert parts[step] == (pytest.approx(loss, rel=1e-5), digest, pytest.approx(padding))
        assert 0 < padding < 0.5
    if more:
        sizes = curve(tmp_path / "whole" / "run", "batch_size", "sequence_length")
        assert {tuple(values) for values in sizes.values()} == {(16, LENGTH), (32, LENGTH // 2)}
    evaluated = [read_metrics(tmp_path / name / "run/metrics.jsonl", "eval")[12] for name in ("whole", "parts")]
    assert evaluated[0]["val/top1"] == evaluated[1]["val/top1"] and evaluated[0]["val/num_samples"] == NUM
