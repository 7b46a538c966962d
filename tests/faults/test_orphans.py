"""kill -9 of the launcher: its ranks notice, save, and end with a verdict; the same command resumes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.faults.test_stop import ranks_of
from tests.integration.small_run import curve, pretrain, verdict


@pytest.mark.parametrize("kind", ["deepspeed", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_orphans_stop_and_the_run_goes_on(command: Commands, digits: None, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    process = command.start(*pretrain(kind, tmp_path, "duration=100_000 steps", "checkpoint.every=100_000 steps"))
    deadline = time.monotonic() + 240
    while max(read_metrics(run / "metrics.jsonl"), default=0) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks = ranks_of("pretrain/run.py", tmp_path)
    assert len(ranks) == 2
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 240
    while ranks_of("pretrain/run.py", tmp_path):
        assert time.monotonic() < deadline, "the ranks go on without a launcher"
        time.sleep(0.1)
    end = verdict(run)
    assert (end["outcome"], end["exit_code"]) == ("requeue", 75)
    assert "its launcher is gone" in end["reason"] and f"process {process.pid}" in end["reason"]
    step = end["step"]
    assert (run / f"checkpoints/step-{step:08d}/COMPLETE.json").exists() and step == max(curve(run))
