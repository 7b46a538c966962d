"""A process that hangs ends itself with its stacks, also when the shared file system hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pretrain.distributed import watchdog
from pretrain.distributed.heartbeats import read_beats
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import EXIT_HUNG, Watchdog
from tests.command import Commands

RANK = Rank(rank=3, local_rank=1, world=4, local_world=4, host="here", launcher="alone")
HANGS = """
import sys, time
from pathlib import Path
from pretrain.distributed import heartbeats, watchdog
from pretrain.distributed.rank import Rank

watchdog.INTERVAL_S, heartbeats.INTERVAL_S, heartbeats.SILENT_S, watchdog.ANSWER_S = 0.1, 0.1, 0.5, 2.0

def waits_for_something_that_never_comes():
    time.sleep(200)

with watchdog.Watchdog(Rank(3, 1, 4, 4, "here", "alone"), {"data": 1.5}) as dog:
    dog.beat("test-" + sys.argv[2])
    dog.publish_in(Path(sys.argv[1]))
    dog.at("step", 4)
    time.sleep(1.8)  # a phase without a limit
    dog.at("data", 5)
    waits_for_something_that_never_comes()
"""


def ended(command: Commands, tmp_path: Path, shared: Path) -> str:
    """Runs a process that hangs to its end; returns its stderr."""
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    environment = {"PYTHONPATH": str(Path.cwd())}
    done = command.run("python", script, shared, str(os.getpid()), timeout_s=240, env=environment)
    assert done.returncode == EXIT_HUNG, done.stderr
    assert "rank 3 on here has been in phase data of step 5" in done.stderr and "limit 2 s" in done.stderr
    assert "waits_for_something_that_never_comes" in done.stderr
    return done.stderr


def test_a_process_that_hangs_ends_with_its_stacks(command: Commands, tmp_path: Path) -> None:
    said = ended(command, tmp_path, tmp_path / "heartbeats")
    assert "1 rank is in phase data of step 5; no heartbeat of ranks 0, 1, 2 can be read" in said


@pytest.mark.parametrize("stuck", ["node-00003.json.tmp", "node-00000.json"])
def test_a_shared_file_system_that_hangs_does_not_blind_it(command: Commands, tmp_path: Path, stuck: str) -> None:
    """Opening a FIFO without a peer blocks for ever, as a write to or a read from a server that is gone does."""
    shared = tmp_path / "heartbeats"
    shared.mkdir()
    os.mkfifo(shared / stuck)
    said = ended(command, tmp_path, shared)
    assert ("the shared file system does not answer" in said) == (stuck == "node-00000.json")


class Watched:
    """A watchdog of this process on a clock that the test moves; ``ended`` are the phases that it would end it for."""

    def __init__(self, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looks, self.ended = 0.0, 0, []
        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=self._look, sleep=time.sleep, time=time.time))
        monkeypatch.setattr(watchdog, "INTERVAL_S", 0.01)
        monkeypatch.setattr(Watchdog, "_end", lambda dog, place, phase_s: self.ended.append(phase_s))
        self.dog = Watchdog(RANK, {"data": limit_s})

    def _look(self) -> float:
        self.looks += 1
        return self.now

    def move(self, seconds: float) -> None:
        """Moves the clock, and waits until the watchdog has looked at it several times."""
        self.now += seconds
        looks = self.looks + 6
        while self.looks < looks:
            time.sleep(0.005)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched(3.0, monkeypatch)
    with watched.dog:
        yield watched


def test_a_process_that_advances_is_left_alone(watched: Watched) -> None:
    for step in range(8):
        watched.dog.at("data", step)
        watched.move(2.0)
    assert watched.dog.left_s == 1.0
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
import os, sys, time
from pathlib import Path
real, jump = time.time, [0.0]
time.time = lambda: real() + jump[0]
from pretrain.distributed import heartbeats, watchdog
from pretrain.distributed.rank import Rank

watchdog.INTERVAL_S = heartbeats.INTERVAL_S = heartbeats.PUBLISH_S = 0.1
with watchdog.Watchdog(Rank(3, 1, 4, 4, "here", "alone"), {"data": 60}) as dog:
    dog.beat(f"test-{os.getpid()}")
    dog.publish_in(Path(sys.argv[1]))
    dog.at("data", 5)
    for jump[0] in (1e6, -1e6):
        time.sleep(0.5)
"""


def test_a_wall_clock_that_jumps_is_not_a_hang(command: Commands, tmp_path: Path) -> None:
    script = tmp_path / "jumps.py"
    script.write_text(JUMPS)
    done = command.run("python", script, tmp_path, timeout_s=240, env={"PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 0, done.stderr
    (beat,) = read_beats(tmp_path)
    assert 0 <= beat.phase_s < 60
