"""The product in one test, for ``make quick``: pack images, pretrain, kill the job, rerun the same command."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands, kill_tree
from tests.integration.small_run import curve, pretrain, verdict


@pytest.mark.quick
def test_packed_pretrained_killed_and_resumed(command: Commands, tmp_path: Path) -> None:
    packed, run = tmp_path / "set", tmp_path / "run"
    classes = ["--classes", "0-4", "--holdout", "0.2"]
    command.run("python", "-m", "pipelines", "pack", "digits", "--out", packed, *classes, check=True)
    sets = [f"data.shards={packed}/train", f"evaluation.sets.val.shards={packed}/val"]
    words = pretrain("alone", tmp_path, *sets, "duration=150 steps", "checkpoint.every=50 steps")
    process = command.start(*words)
    while not (run / "checkpoints" / "step-00000050").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill_tree(process)
    process.wait()
    assert not (run / "exit.json").exists()
    command.run(*words, check=True)
    assert verdict(run)["outcome"] == "complete"
    losses = [row[0] for row in curve(run).values()]
    assert len(losses) == 150 and losses[-1] < losses[0]
    assert len(read_metrics(run / "metrics.jsonl", "resume")) == 1
