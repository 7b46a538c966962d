"""A rank that stops answering: found within its phase's limit, named, and the job ends with a code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pretrain.telemetry.sinks import read_metrics
from tests.command import Commands
from tests.faults.test_stop import ranks_of
from tests.integration.small_run import pretrain


def test_a_frozen_rank_is_named_and_the_job_ends(command: Commands, digits: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = ["cluster.phase_limits_s.step=6", "cluster.phase_limits_s.data=6"]
    process = command.start(
        *pretrain("torchrun", tmp_path, "duration=5000 steps", "checkpoint.every=5000 steps", *limits)
    )
    deadline = time.monotonic() + 240
    while max(read_metrics(run / "metrics.jsonl"), default=0) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    frozen = ranks_of("pretrain/run.py", tmp_path)[-1]
    os.kill(frozen, signal.SIGSTOP)
    output, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert f"(process {frozen} on" in errors and "the others wait for rank" in errors, output + errors
    assert "stacks of rank" in errors and "engine/loop.py" in errors
    assert not (run / "exit.json").exists(), "no verdict: the job script counts it as a crash and starts it again"
