"""Finds a rank that hangs: names it, prints every rank's stacks, and ends the job in bounded time.

Each rank says in memory what it does (``at``); a thread writes that to the rank's heartbeat file now and then. When a
rank has stayed in one phase for longer than the phase's limit, its own thread prints its stacks, looks into the
heartbeats who is behind, and ends the process. Peers that wait for it in a collective end in the same way.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pretrain.files import TEMPORARY_SUFFIX

EXIT_HUNG = 70  # sysexits' EX_SOFTWARE
INTERVAL_S = 1.0
# Within one step, what comes first: of two ranks at the same step the one in the earlier phase is behind.
PHASES = ("start", "load", "data", "step", "save", "evaluate", "end")


@dataclass(frozen=True)
class Beat:
    """What a rank was doing, and since when (seconds since the epoch); ``seen`` is when it last said so."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    since: float
    seen: float

    @property
    def progress(self) -> tuple[int, int]:
        """Orders ranks from the one that is furthest behind."""
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """Watches this rank.

    Args:
        folder: where heartbeat files lie, shared by all ranks.
        rank, host: who this is.
        limits_s: phase → seconds that a rank may stay in it; a phase that is not named has no limit.
    """

    def __init__(self, folder: Path, rank: int, host: str, limits_s: Mapping[str, float]) -> None:
        self._folder, self._rank, self._host, self._limits = folder, rank, host, limits_s
        self._now: tuple[int, str, float] = (0, "start", time.time())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begins to watch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def at(self, phase: str, step: int) -> None:
        """Says that the rank begins a phase now. Costs an assignment."""
        self._now = (step, phase, time.time())

    def stop(self) -> None:
        """Ends the watch."""
        self.at("end", self._now[0])
        self._ended.set()
        self._thread.join(timeout=2 * INTERVAL_S)

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            step, phase, since = self._now
            self._write(step, phase, since)
            if time.time() - since > self._limits.get(phase, float("inf")):
                self._end(step, phase, since)

    def _write(self, step: int, phase: str, since: float) -> None:
        beat = Beat(self._rank, self._host, os.getpid(), step, phase, since, time.time())
        path = self._folder / f"rank-{self._rank:05d}.json"
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            temporary.write_text(json.dumps(beat.__dict__))
            temporary.replace(path)
        except OSError as error:  # a full disk must not end a run that could go on
            print(f"rank {self._rank}: heartbeat {path} not written: {error}", file=sys.stderr, flush=True)

    def _end(self, step: int, phase: str, since: float) -> NoReturn:
        print(
            f"error: rank {self._rank} on {self._host} has been in phase {phase} of step {step} for "
            f"{time.time() - since:.0f} s (limit {self._limits[phase]:.0f} s, cluster.phase_limits_s.{phase})\n"
            f"{accuse(read_beats(self._folder))}\nstacks of rank {self._rank}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_HUNG)


def read_beats(folder: Path) -> list[Beat]:
    """The last heartbeat of every rank, in rank order; unreadable ones are left out."""
    beats = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return beats


def accuse(beats: list[Beat]) -> str:
    """Names the ranks that the others wait for."""
    if not beats:
        return "no heartbeat can be read"
    behind = min(beat.progress for beat in beats)
    late = [beat for beat in beats if beat.progress == behind]
    if len(late) == len(beats):  # all are at the same place: one that has stopped beating is the one
        newest = max(beat.seen for beat in beats)
        silent = [beat for beat in beats if newest - beat.seen > 3 * INTERVAL_S]
        if not silent:
            return f"all {len(beats)} ranks are in phase {late[0].phase} of step {late[0].step}"
        late = silent
    names = ", ".join(
        f"rank {beat.rank} (process {beat.pid} on {beat.host}: step {beat.step}, phase {beat.phase}, last seen "
        f"{time.time() - beat.seen:.0f} s ago)"
        for beat in late
    )
    return f"the others wait for {names}"
