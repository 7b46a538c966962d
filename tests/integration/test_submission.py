"""The entry of a real run to a race, from training to the checked file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import Commands
from tests.integration.small_run import pretrain

REPORT = ("python", "-m", "pipelines", "report")


@pytest.mark.slow
def test_a_real_run(tmp_path: Path, command: Commands, digits: None) -> None:
    command.run(*pretrain("alone", tmp_path, "evaluation.every=4 steps"), check=True)
    out = tmp_path / "entry.json"
    command.run(*REPORT, tmp_path / "run", "--submission", "--out", out, "--target", "val/top1=0.01", check=True)
    entry = json.loads(out.read_text())
    assert entry["step"] in (4, 8, 12) and entry["seconds"] > entry["seconds_without_evaluation"] > 0
    assert entry["gpu_hours"] == pytest.approx(entry["seconds"] / 3600) and len(entry["source"]) == 32
    command.run(*REPORT, out, "--submission", check=True)
