"""A process that hangs ends itself with its stacks; and who is named as the one that the others wait for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.distributed import watchdog
from pretrain.distributed.watchdog import EXIT_HUNG, Beat, Watchdog, accuse, read_beats
from tests.command import Commands

HANGS = """
import sys, time
from pathlib import Path
from pretrain.distributed import watchdog
from pretrain.distributed import watchdog as module
from pretrain.distributed.watchdog import Watchdog

module.INTERVAL_S, module.SILENT_S = 0.1, 0.5

def waits_for_something_that_never_comes():
    time.sleep(60)

watchdog = Watchdog(Path(sys.argv[1]), 3, "here", {"data": 1.5}).start()
watchdog.at("step", 4)
time.sleep(1.8)  # a phase without a limit
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


class Watched:
    """A watchdog of this process on a clock that the test moves; ``ended`` are the phases that it would end it for."""

    def __init__(self, folder: Path, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ended = 0.0, []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep))
        monkeypatch.setattr(watchdog, "INTERVAL_S", 0.01)
        monkeypatch.setattr(Watchdog, "_end", lambda dog, place, phase_s: self.ended.append(phase_s))
        self.folder = folder
        self.dog = Watchdog(folder, 0, "here", {"data": limit_s}).start()

    def move(self, seconds: float) -> None:
        """Moves the clock, and waits until the watchdog has looked at it twice."""
        self.now += seconds
        looks = self._looks() + 2
        while self._looks() < looks:
            time.sleep(0.005)

    def _looks(self) -> int:
        return max((beat.count for beat in read_beats(self.folder)), default=0)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched(tmp_path, 3.0, monkeypatch)
    yield watched
    watched.dog.stop()


def test_a_process_that_advances_is_left_alone(watched: Watched) -> None:
    for step in range(8):
        watched.dog.at("data", step)
        watched.move(2.0)
    (beat,) = read_beats(watched.folder)
    assert (beat.rank, beat.host, beat.step, beat.phase_s) == (0, "here", 7, 2.0)
    assert watched.ended == []


def test_a_process_that_was_paused_does_not_hang(watched: Watched) -> None:
    """All ranks of a suspended job wake up together: nobody has hung."""
    watched.dog.at("data", 5)
    watched.move(1.0)
    watched.move(1000.0)
    assert watched.ended == []
    watched.move(1.5)
    assert watched.ended == []
    watched.move(1.0)
    assert watched.ended[0] == 3.5, "the pause does not count, the seconds around it do"


JUMPS = """
import sys, time
from pathlib import Path
real, jump = time.time, [0.0]
time.time = lambda: real() + jump[0]
from pretrain.distributed import watchdog
from pretrain.distributed import watchdog as module
from pretrain.distributed.watchdog import Watchdog

module.INTERVAL_S = 0.1
watchdog = Watchdog(Path(sys.argv[1]), 3, "here", {"data": 60}).start()
watchdog.at("data", 5)
for jump[0] in (1e6, -1e6):
    time.sleep(0.5)
watchdog.stop()
"""


def test_a_wall_clock_that_jumps_is_not_a_hang(command: Commands, tmp_path: Path) -> None:
    script = tmp_path / "jumps.py"
    script.write_text(JUMPS)
    done = command.run("python", script, tmp_path, timeout_s=240, env={"PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0, done.stderr
    (beat,) = read_beats(tmp_path)
    assert 0 <= beat.phase_s < 60


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
