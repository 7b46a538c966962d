"""A process that hangs ends itself with its stacks; and who is named as the one that the others wait for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.distributed.watchdog import EXIT_HUNG, Beat, Watchdog, accuse, read_beats
from tests.command import Commands

HANGS = """
import sys, time
from pathlib import Path
from pretrain.distributed.watchdog import Watchdog

def waits_for_something_that_never_comes():
    time.sleep(60)

watchdog = Watchdog(Path(sys.argv[1]), 3, "here", {"data": 1.5}).start()
watchdog.at("step", 4)
time.sleep(2.5)  # a phase without a limit
watchdog.at("data", 5)
waits_for_something_that_never_comes()
"""


def test_a_process_that_hangs_ends_with_its_stacks(command: Commands, tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    done = command.run("python", script, tmp_path, timeout_s=30, env={"PYTHONPATH": str(Path.cwd())})
    assert done.returncode == EXIT_HUNG
    assert "rank 3 on here has been in phase data of step 5" in done.stderr and "limit 2 s" in done.stderr
    assert "waits_for_something_that_never_comes" in done.stderr


def test_a_process_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, 0, "here", {"step": 1.5}).start()
    for step in range(8):
        watchdog.at("step", step)
        time.sleep(0.3)
    watchdog.stop()
    (beat,) = read_beats(tmp_path)
    assert (beat.rank, beat.host) == (0, "here") and beat.step >= 3


NOW = time.time()
BEAT = Beat(rank=0, host="a", pid=1, step=7, phase="step", since=NOW, seen=NOW)


@pytest.mark.parametrize(
    ("beats", "named"),
    [
        (
            [BEAT, replace(BEAT, rank=1, phase="data"), replace(BEAT, rank=2)],
            "wait for rank 1 (process 1 on a: step 7, phase data",
        ),
        ([BEAT, replace(BEAT, rank=1), replace(BEAT, rank=2, step=6, phase="save")], "wait for rank 2"),
        ([BEAT, replace(BEAT, rank=1, seen=NOW - 60)], "wait for rank 1"),  # same place, but it beats no more
        ([BEAT, replace(BEAT, rank=1)], "all 2 ranks are in phase step of step 7"),
        ([], "no heartbeat can be read"),
    ],
)
def test_who_is_named(beats: list[Beat], named: str) -> None:
    assert named in accuse(beats)


def test_half_written_heartbeats_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rank-00000.json").write_text('{"rank": 0, "ho')
    assert read_beats(tmp_path) == []
