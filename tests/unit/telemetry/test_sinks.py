"""metrics.jsonl survives a kill in the middle of a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.telemetry.metrics import checked
from pretrain.telemetry.sinks import JsonlSink, read_metrics


def test_later_lines_count_and_cut_lines_do_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write("train", 1, {"loss": 3.0})
    sink.write("train", 2, {"loss": 2.0})
    sink.write("eval", 2, {"val/top1": 0.5})
    sink.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "step": 3, "lo')  # killed here
    sink = JsonlSink(path)
    sink.write("train", 2, {"loss": 2.5})
    sink.close()
    assert {step: line["loss"] for step, line in read_metrics(path).items()} == {1: 3.0, 2: 2.5}
    assert read_metrics(path, "eval")[2]["val/top1"] == 0.5


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == {}


def test_an_unknown_name_is_a_bug() -> None:
    assert checked({"loss": 1.0, "val/top1": 0.1})
    with pytest.raises(AssertionError, match="register"):
        checked({"val/lossy": 1.0})
