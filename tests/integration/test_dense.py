"""Segmentation as a user runs it: masks packed, a short training that beats a constant answer, the same in evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.data.storage.card import Card
from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands

CONSTANT = 0.0758  # mean IoU of saying background everywhere: 83.4 % of the pixels, over 11 classes


@pytest.mark.slow
def test_a_dense_head_learns_digits_and_every_stage_agrees(command: Commands, tmp_path: Path) -> None:
    pipelines = ("python", "-m", "pipelines")
    command.run(*pipelines, "pack", "digit-canvases", "mask", "--out", tmp_path / "set", check=True)
    assert Card.load(tmp_path / "set" / "val").labels == "mask"
    settings = [
        f"data.shards={tmp_path}/set/train", f"evaluation.sets.val.shards={tmp_path}/set/val", f"output_dir={tmp_path}",
        "name=run", "duration=100 steps", "checkpoint.every=100 steps", "optim.schedule.warmup=20 steps",
    ]  # fmt: skip
    config = "configs/finetune/demo_segmentation.yaml"
    command.run("python", "pretrain/run.py", "--config", config, *settings, check=True, timeout_s=600)
    measured = read_metrics(tmp_path / "run" / "metrics.jsonl", "eval")[100]
    assert measured["val/mIoU"] > 1.4 * CONSTANT and measured["val/num_samples"] == 500
    done = command.run(*pipelines, "evaluate", tmp_path / "set/val", "--from", tmp_path / "run", "--json", check=True)
    assert json.loads(done.stdout)["mIoU"] == pytest.approx(measured["val/mIoU"], abs=1e-4)
