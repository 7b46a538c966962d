"""Crash reports: an exception of a rank, written before it ends."""

from __future__ import annotations

import os
from pathlib import Path

from pretrain import disk
from pretrain.distributed.rank import Rank
from pretrain.engine.crashes import (
    CRASHES,
    Crash,
    in_one_line,
    keep_first_crashes,
    read_crashes,
    report_crash,
    report_path,
)

FIRST = Crash("crash", 3, "node2", 17, "step", "ZeroDivisionError: division by zero", 5_000)
LATER = Crash("crash", 0, "node1", 17, "step", "RuntimeError: Connection closed by peer", 4_000)  # its clock is behind
START = 12


def test_the_first_crash_is_told_by_the_file_system_s_clock(tmp_path: Path) -> None:
    said: list[str] = []
    for crash, at in ((LATER, 2000.0), (FIRST, 1000.0)):
        report_crash(tmp_path, START, crash, said.append)
        os.utime(report_path(tmp_path, START, crash.rank), (at, at))
    found = read_crashes(tmp_path, START)
    assert [(crash.rank, crash.host, crash.step, crash.error, crash.ms) for crash in found] == [
        (3, "node2", 17, "ZeroDivisionError: division by zero", 5_000),
        (0, "node1", 17, "RuntimeError: Connection closed by peer", 4_000),
    ]
    assert [crash.time for crash in found] == [1000.0, 2000.0] and said == []
    assert read_crashes(tmp_path, START + 1) == []
    report_crash(tmp_path, START - 1, LATER, said.append)
    keep_first_crashes(tmp_path)
    assert [crash.rank for crash in read_crashes(tmp_path, START)] == [3]
    assert [crash.rank for crash in read_crashes(tmp_path, START - 1)] == [0]


def test_a_damaged_report_is_left_out(tmp_path: Path) -> None:
    report_crash(tmp_path, START, FIRST, print)
    path = report_path(tmp_path, START, FIRST.rank)
    path.write_text(path.read_text().replace("node2", "node9"))
    assert read_crashes(tmp_path, START) == []
    keep_first_crashes(tmp_path / "elsewhere")


def test_a_folder_that_takes_no_report_is_no_second_crash(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / CRASHES).write_text("a file")
    report_crash(tmp_path, START, FIRST, said.append)
    assert len(said) == 1 and "no crash report" in said[0]
    assert disk.current.exists(tmp_path / CRASHES)


def test_an_exception_is_one_line_without_secrets(tmp_path: Path) -> None:
    assert in_one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert in_one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    rank, place = Rank(0, 0, 1, 1, "node1", "alone"), (0, "data")
    report_crash(tmp_path, START, Crash.of(rank, place, OSError("https://user:hunter2@host/shard.tar")), print)
    (crash,) = read_crashes(tmp_path, START)
    assert crash.kind == "crash" and crash.error.startswith("OSError: https://") and "hunter2" not in crash.error
    assert Crash.of(rank, place, "phase data for 9 s").kind == "hang"
