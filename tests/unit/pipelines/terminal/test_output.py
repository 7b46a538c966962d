from __future__ import annotations

import pytest
from rich.console import Console

from pipelines.terminal import output
from pipelines.terminal.output import LazyBar


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return now


def run(clock, steps, *, terminal: bool, capsys) -> str:
    with LazyBar("packing", 1000, "images") as bar:
        bar._console = Console(stderr=True, force_terminal=terminal, width=120)
        for seconds, done in steps:
            clock[0] = 100.0 + seconds
            bar.show(done)
    return capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_over_in_two_seconds_is_silent(clock, terminal, capsys):
    assert run(clock, [(0, 0), (1, 500), (1.9, 1000)], terminal=terminal, capsys=capsys) == ""


def test_a_terminal_gets_a_bar_with_count_and_rate(clock, capsys):
    shown = run(clock, [(0, 100), (4, 500)], terminal=True, capsys=capsys)
    assert "packing" in shown
    assert "500/1000" in shown
    assert "100 images/s" in shown  # 400 in 4 s: what an earlier run had done does not count


def test_slow_work_has_a_rate_above_zero(clock, capsys):
    shown = run(clock, [(0, 0), (20, 5)], terminal=False, capsys=capsys)
    assert shown == "packing: 5 of 1,000 images, 0.25 images/s\n"


def test_a_log_file_gets_a_line_now_and_then(clock, capsys):
    steps = [(0, 0), (10, 100), (20, 200), (25, 250), (40, 400)]
    shown = run(clock, steps, terminal=False, capsys=capsys)
    assert shown.splitlines() == [
        "packing: 200 of 1,000 images, 10 images/s",
        "packing: 400 of 1,000 images, 10 images/s",
    ]
