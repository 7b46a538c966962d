"""metrics.jsonl survives a kill in the middle of a line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pretrain import records
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.metrics import LINE, JsonlSink, checked, read_metrics
from pretrain.telemetry.telemetry import Telemetry, Work
from tests.faulty_disk import FaultyDisk, using


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


def test_lines_wait_while_the_disk_is_full_and_are_written_later(tmp_path: Path) -> None:
    """Each once and in order, also where a write ended in the middle; and the run is told once."""
    shown, path = io.StringIO(), tmp_path / "metrics.jsonl"
    telemetry = Telemetry(
        [JsonlSink(path)], Reporter(True, tmp_path / "log.txt", file=shown), log_every=1, work=Work(1, 1, 1)
    )
    telemetry.event("save", 1, {"seconds": 1.0})
    with using(FaultyDisk("ENOSPC", 1, lasting=True)):
        for step in (2, 3):
            telemetry.event("save", step, {"seconds": 1.0})
    telemetry.event("save", 4, {"seconds": 1.0})
    telemetry.close()
    telemetry.reporter.say("the end")
    assert list(read_metrics(path, "save")) == [1, 2, 3, 4]
    text = shown.getvalue()
    assert (
        text.count("metrics.jsonl cannot be written: [Errno 28]") == 1 and text.count("log.txt cannot be written") == 1
    )
    log = (tmp_path / "log.txt").read_text()
    assert "metrics.jsonl cannot be written" in log and log.endswith("the end\n")


def test_a_line_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"kind": "train", "step": 1, "loss": 1}\n{"kind": "train"}\n[1]\n{"kind": "train", "step": "x"}\n\xff\n'
        b'{"kind": "train", "step": 2, "loss": "2"}\n{"kind": "train", "step": 3, "loss": 3}\n{"kind": "tr'
    )
    assert list(read_metrics(path)) == [1, 3]
    assert records.read_lines(path, LINE).num_damaged == 5, "a line that a kill cut at the end is none"
