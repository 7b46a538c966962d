"""A process that hangs ends itself with its stacks; and who is named as the one that the others wait for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
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
    done = command.run("python", script, tmp_path, timeout_s=240, env={"PYTHONPATH": str(Path.cwd())})
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


JUMPS = """
import sys, time
from pathlib import Path
real, jump = time.time, [0.0]
time.time = lambda: real() + jump[0]
from pretrain.distributed.watchdog import Watchdog

watchdog = Watchdog(Path(sys.argv[1]), 3, "here", {"data": 60}).start()
watchdog.at("data", 5)
for jump[0] in (1e6, -1e6):
    time.sleep(2.5)
watchdog.stop()
"""


def test_a_wall_clock_that_jumps_is_not_a_hang(command: Commands, tmp_path: Path) -> None:
    script = tmp_path / "jumps.py"
    script.write_text(JUMPS)
    done = command.run("python", script, tmp_path, timeout_s=240, env={"PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0, done.stderr
    (beat,) = read_beats(tmp_path)
    assert 0 <= beat.phase_s < 60


PAUSED = """
import os, sys, time
from pathlib import Path
from pretrain.distributed import watchdog
watchdog.INTERVAL_S, watchdog.PAUSE_S = 0.1, 1.0
watched = watchdog.Watchdog(Path(sys.argv[1]), 3, "here", {"data": 2}).start()
watched.at("data", 5)
print("ready", flush=True)
sys.stdin.readline()
watched.stop()
"""


def test_a_process_that_was_paused_does_not_hang(command: Commands, tmp_path: Path) -> None:
    """All ranks of a suspended job wake up together: nobody has hung."""
    script = tmp_path / "paused.py"
    script.write_text(PAUSED)
    process = command.start("python", script, tmp_path, stdin=subprocess.PIPE, env={"PYTHONPATH": str(Path.cwd())})
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.3)  # the next look would find a phase of more than 3 s
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


BEAT = Beat(rank=0, host="a", pid=1, step=7, phase="step", phase_s=3.0, count=5)


@pytest.mark.parametrize(
    ("beats", "named"),
    [
        (
            [BEAT, replace(BEAT, rank=1, phase="data"), replace(BEAT, rank=2)],
            "wait for rank 1 (process 1 on a: step 7, phase data",
        ),
        ([BEAT, replace(BEAT, rank=1), replace(BEAT, rank=2, step=6, phase="save")], "wait for rank 2"),
        ([BEAT, replace(BEAT, rank=1)], "all 2 ranks are in phase step of step 7"),
        ([], "no heartbeat can be read"),
    ],
)
def test_who_is_named(beats: list[Beat], named: str) -> None:
    assert named in accuse(beats)


def test_a_rank_that_no_longer_beats_is_named_whatever_its_clock_says() -> None:
    before = [BEAT, replace(BEAT, rank=1), replace(BEAT, rank=2, count=900)]
    now = [BEAT, replace(BEAT, rank=1, count=8), replace(BEAT, rank=2, count=900)]
    assert "wait for rank 2" in accuse(now, before, reader=0) and "no longer beating" in accuse(now, before, reader=0)
    assert "rank 0" not in accuse(now, before, reader=0), "the one that asks does not beat while it does"
    assert "all 3 ranks" in accuse([replace(beat, count=beat.count + 3) for beat in before], before)


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"rank": 0, "host": "a", "pid": 1, "step": 1, "phase": "step"}']
    + [json.dumps(BEAT.__dict__ | change) for change in ({"phase": "?"}, {"phase": []}, {"step": None}, {"rank": "0"})]
    + [json.dumps({"rank": 0, "host": "a", "pid": 1, "step": 1, "phase": "step", "since": 1.0, "seen": 1.0})],
)
def test_what_is_not_a_heartbeat_is_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "rank-00000.json").write_text(text)
    (tmp_path / "rank-00001.json").write_text(json.dumps(BEAT.__dict__))
    assert read_beats(tmp_path) == [BEAT]


def test_half_written_heartbeats_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rank-00000.json").write_text('{"rank": 0, "ho')
    assert read_beats(tmp_path) == []
