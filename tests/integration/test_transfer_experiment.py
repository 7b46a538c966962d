"""benchmarks/transfer.py for real, in its tiny form: every cell of every table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command import Commands


@pytest.mark.slow  # half a minute on a quiet machine
@pytest.mark.timeout(900)
def test_quick_fills_every_table_and_goes_on_after_a_stop(command: Commands, tmp_path: Path) -> None:
    words = ["python", "-m", "benchmarks.transfer", "--quick", "--parallel", "2", "--out", tmp_path]
    command.run(*words, "--only", "upstream", check=True, timeout_s=400)
    (first,) = _lines(tmp_path)
    assert first["cell"] == "upstream/openclipart"

    command.run(*words, check=True, timeout_s=400)
    lines = _lines(tmp_path)
    assert lines[0] == first  # what was done stays
    assert len({line["run"] for line in lines}) == len(lines)
    text = (tmp_path / "tables.md").read_text()
    tables = [row for row in text.splitlines() if row.startswith("|")]
    assert len(tables) > 30
    cells = [cell.strip() for row in tables for cell in row.split("|")[2:-1]]
    assert "–" not in cells
    assert "not finite" not in cells
    assert sum(bool(re.fullmatch(r"\d+\.\d", cell)) for cell in cells) > 60
    assert "No cell is missing." in text

    other = command.run(*words, "--budget", "2", timeout_s=200)
    assert other.returncode == 2
    assert "with other settings" in other.stderr


def _lines(out: Path) -> list[dict]:
    return [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines() if text]
