"""The complete demo with one seed: the table comes at the end and the transfer beats scratch's chance level."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import Commands
from tests.integration.small_run import verdict


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo(command: Commands, tmp_path: Path) -> None:
    done = command.run(
        "python", "-m", "pipelines", "demo", "--out", tmp_path, "--seeds", "1", timeout_s=550, check=True
    )
    assert "killed with kill -9 after step" in done.stdout and "resumed at step" in done.stdout
    scores = {name: float(value) for name, value in re.findall(r"│ (\w+).*?│ ([0-9.]+)", done.stdout)}
    assert scores["upstream"] > 90 and scores["transfer"] > 50 and set(scores) == {"upstream", "transfer", "scratch"}
    for run in ("demo_digits", "demo_digits_transfer_0", "demo_digits_scratch_0"):
        assert verdict(tmp_path / run)["outcome"] == "complete"
