"""Detects a hanging rank: names it, prints every rank's stacks, and ends the job in bounded time.

It runs from the first line of a job on: before torch is imported, before the ranks meet. Each rank records its phase in
memory (``at``). A thread looks every second and touches no file. When the rank exceeds the limit of its phase, another
thread names the rank that is behind according to the heartbeats and prints the stacks; the process ends whether or not
that thread finishes, since a file server that hangs may be the cause. Peers that wait in a collective end in the same
way.

Wall clocks are not used, so that a clock adjustment does not look like a hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pretrain import threads
from pretrain.distributed import heartbeats
from pretrain.distributed.heartbeats import PHASES, Beat, Heartbeats, accuse
from pretrain.distributed.processes import started_at
from pretrain.distributed.rank import Rank
from pretrain.names import tell

EXIT_HUNG = 70  # sysexits' EX_SOFTWARE
INTERVAL_S = 1.0
PAUSE_S = 10 * INTERVAL_S
ANSWER_S = 10.0  # for the file system to answer, and for stderr to take the message
_Place = tuple[int, str, float]  # step, phase, the monotonic second at which it began


class Watchdog:
    """Watches this rank.

    Args:
        rank: this process.
        limits_s: key of ``cluster.phase_limits_s`` → seconds; without one, a phase may last for ever.

    Attributes:
        began: seconds since the epoch at which the process and, for the first time, each phase began.
    """

    def __init__(self, rank: Rank, limits_s: Mapping[str, float]) -> None:
        self._rank, self._limits = rank, limits_s
        self._place: _Place = (0, "import", time.monotonic())
        self.began = {"process": started_at(), "import": time.time()}
        self._paused: tuple[_Place, float] = (self._place, 0.0)  # seconds for which the process was suspended
        self._heartbeats: Heartbeats | None = None
        self._ended = threading.Event()
        self.record: Callable[[tuple[int, str], str], None] = lambda place, text: None  # place and words of a hang

    def __enter__(self) -> Watchdog:
        """Begins to look."""
        self._thread = threads.start("watchdog", self._watch)
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the looks and the heartbeats."""
        self._ended.set()
        if self._heartbeats is not None:
            self._heartbeats.stop()
        self._thread.join(timeout=2 * INTERVAL_S)

    def at(self, phase: str, step: int) -> None:
        """Records that the rank begins a phase now. Costs one assignment."""
        self._place = (step, phase, time.monotonic())
        if phase not in self.began:
            self.began[phase] = time.time()

    @property
    def place(self) -> tuple[int, str]:
        """The number of steps done, and the phase."""
        return self._place[:2]

    def beat(self, start: str) -> None:
        """Begins the heartbeats on this node; see ``Heartbeats``."""
        self._heartbeats = Heartbeats(start, self._rank.host, self._now).begin()

    def publish_in(self, folder: Path) -> None:
        """Begins to show the heartbeats of all nodes to each other, in a folder that they share."""
        if self._heartbeats is not None:
            self._heartbeats.publish_in(folder)

    def stop_publishing(self) -> None:
        """To call before the folder is given back."""
        if self._heartbeats is not None:
            self._heartbeats.stop_publishing()

    @property
    def left_s(self) -> float:
        """Seconds until the limit of the present phase."""
        place = self._place
        return max(0.0, self._limit(place) - self._phase_s(place))

    def _limit(self, place: _Place) -> float:
        return self._limits.get(PHASES[place[1]], float("inf"))

    def _phase_s(self, place: _Place) -> float:
        paused_place, paused_s = self._paused
        return time.monotonic() - place[2] - (paused_s if paused_place is place else 0.0)

    def _now(self) -> Beat:
        place = self._place
        return Beat(self._rank.rank, self._rank.host, os.getpid(), place[0], place[1], self._phase_s(place))

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._ended.wait(INTERVAL_S):
            place, now = self._place, time.monotonic()
            if self._paused[0] is not place:
                self._paused = (place, 0.0)
            elif now - looked > PAUSE_S:  # the process or its machine was suspended: not a hang
                self._paused = (place, self._paused[1] + now - looked)
            looked = now
            if (phase_s := self._phase_s(place)) > self._limit(place):
                self._end(place, phase_s)

    def _end(self, place: _Place, phase_s: float) -> None:
        """Ends the process, unless it leaves the phase while the other ranks' beats are counted."""
        silent_s, blamed = self._silent_s, ["the shared file system does not answer: heartbeats cannot be read"]

        def name() -> None:
            blamed[0] = self._accuse(silent_s)

        within(silent_s + ANSWER_S, name)
        if self._place is not place:
            return
        within(ANSWER_S, lambda: self._report(place, phase_s, blamed[0]))
        self.record(place[:2], f"phase {place[1]} for {phase_s:.0f} s: {blamed[0]}")
        os._exit(EXIT_HUNG)

    @property
    def _silent_s(self) -> float:
        """How long to count beats: other nodes show theirs less often."""
        shows_others = self._heartbeats is not None and self._heartbeats.is_published
        is_elsewhere = shows_others and self._rank.local_world < self._rank.world
        return heartbeats.SILENT_ELSEWHERE_S if is_elsewhere else heartbeats.SILENT_S

    def _accuse(self, silent_s: float) -> str:
        if self._heartbeats is None:
            time.sleep(silent_s)  # rank 0 names the ranks that have not joined, if it can
            return "the ranks have not met yet"
        before = self._heartbeats.read()
        time.sleep(silent_s)
        return accuse(self._heartbeats.read(), before, reader=self._rank.rank, world=self._rank.world)

    def _report(self, place: _Place, phase_s: float, blamed: str) -> None:
        (step, phase, _), limit_s = place, self._limit(place)
        tell(
            f"error: rank {self._rank.rank} on {self._rank.host} has been in phase {phase} of step {step} for "
            f"{phase_s:.0f} s (limit {limit_s:.0f} s; in a training: cluster.phase_limits_s.{PHASES[phase]})\n"
            f"{blamed}\nstacks of rank {self._rank.rank}:",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(OSError, ValueError):  # stderr without a file
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()


def within(limit_s: float, work: Callable[[], object]) -> None:
    """Calls ``work`` in a thread and waits for at most ``limit_s``: the work may block for ever."""
    threads.start("bounded", work).join(limit_s)
