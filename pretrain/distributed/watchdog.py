"""Detects a hanging rank: names it, prints every rank's stacks, and ends the job in bounded time.

Each rank records its phase in memory (``at``); a thread writes it to the rank's heartbeat file every second. When a
rank exceeds the limit of its phase, its own thread prints its stacks, names the rank that is behind according to the
heartbeats, and ends the process. Peers that wait for it in a collective end in the same way.

Wall clocks are not used, so that a clock adjustment does not look like a hang: a rank measures its own phases, and
detects whether another rank still beats by its heartbeat count, not by the time on its host.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain import disk, records
from pretrain.files import TEMPORARY_SUFFIX, make_folders
from pretrain.names import tell

EXIT_HUNG = 70  # sysexits' EX_SOFTWARE
INTERVAL_S = 1.0
SILENT_S = 3 * INTERVAL_S
PAUSE_S = 10 * INTERVAL_S
# Ordered as within a step: of two ranks at the same step, the one in the earlier phase is behind.
PHASES = ("start", "load", "data", "step", "save", "evaluate", "end")
_BEAT = re.compile(r"rank-\d+\.json")
_SHAPE: records.Shape = {
    **dict.fromkeys(("rank", "pid", "step", "count"), records.whole),
    "phase_s": records.number,
    "host": records.text,
    "phase": lambda value: value in PHASES,
}


@dataclass(frozen=True)
class Beat:
    """The phase of a rank, its duration in seconds by the rank's own clock, and the number of its heartbeats so far."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    phase_s: float
    count: int

    @property
    def progress(self) -> tuple[int, int]:
        """Sort key that puts the rank that is furthest behind first."""
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """Watches this rank.

    Args:
        folder: for heartbeat files, shared by all ranks.
        rank, host: this process.
        limits_s: phase → seconds that a rank may stay in it; an absent phase has no limit.
    """

    def __init__(self, folder: Path, rank: int, host: str, limits_s: Mapping[str, float]) -> None:
        self._folder, self._rank, self._host, self._limits = folder, rank, host, limits_s
        self._now: tuple[int, str, float] = (0, "start", time.monotonic())
        self._in_trouble = False
        self._ended = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Starts the watchdog thread."""
        step, phase, _ = self._now
        self.at(phase, step)  # the limit applies from here: choosing a checkpoint, before it, has none
        with contextlib.suppress(OSError):  # reported with the first heartbeat that cannot be written
            make_folders(self._folder)
        self._thread.start()
        return self

    def at(self, phase: str, step: int) -> None:
        """Records that the rank begins a phase now. Costs one assignment."""
        self._now = (step, phase, time.monotonic())

    def stop(self) -> None:
        """Stops the watchdog thread."""
        self.at("end", self._now[0])
        self._ended.set()
        self._thread.join(timeout=2 * INTERVAL_S)

    def _watch(self) -> None:
        place, paused_s, looked = self._now, 0.0, time.monotonic()
        while not self._ended.wait(INTERVAL_S):
            current, now = self._now, time.monotonic()
            if current is not place:
                place, paused_s = current, 0.0
            elif now - looked > PAUSE_S:  # the process or its machine was suspended: not a hang
                paused_s += now - looked
            looked = now
            step, phase, since = current
            phase_s = now - since - paused_s
            self._write(step, phase, phase_s)
            if phase_s > self._limits.get(phase, float("inf")):
                self._end(current, phase_s)

    def _write(self, step: int, phase: str, phase_s: float) -> None:
        self._count += 1
        beat = Beat(self._rank, self._host, os.getpid(), step, phase, phase_s, self._count)
        path = self._folder / f"rank-{self._rank:05d}.json"
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            disk.current.write(temporary, json.dumps(beat.__dict__).encode())
            disk.current.rename(temporary, path)
            self._in_trouble = False
        except OSError as error:  # a full disk must not end a run that could continue
            if not self._in_trouble:
                tell(f"rank {self._rank}: heartbeat {path} not written: {error}", file=sys.stderr, flush=True)
            self._in_trouble = True

    def _end(self, place: tuple[int, str, float], phase_s: float) -> None:
        """Ends the process, unless it leaves the phase while the other ranks' beats are counted."""
        step, phase, _ = place
        before = read_beats(self._folder)
        time.sleep(SILENT_S)
        if self._now is not place:
            return
        tell(
            f"error: rank {self._rank} on {self._host} has been in phase {phase} of step {step} for {phase_s:.0f} s "
            f"(limit {self._limits[phase]:.0f} s, cluster.phase_limits_s.{phase})\n"
            f"{accuse(read_beats(self._folder), before, self._rank)}\nstacks of rank {self._rank}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_HUNG)


def read_beats(folder: Path) -> list[Beat]:
    """The last heartbeat of every rank, in rank order; unreadable ones, and those of older versions, are left out."""
    try:
        names = [name for name in disk.current.entries(folder) if _BEAT.fullmatch(name)]
    except OSError:
        return []
    found = [records.read(folder / name, _SHAPE).value for name in names]
    return [Beat(**{key: beat[key] for key in _SHAPE}) for beat in found if beat is not None]


def accuse(beats: list[Beat], before: list[Beat] | None = None, reader: int | None = None) -> str:
    """Names the ranks that the others wait for.

    Args:
        beats: of all ranks.
        before: the heartbeats at least ``SILENT_S`` earlier; a rank that has not beaten since is silent. None: unknown.
        reader: the calling rank, which does not beat during the call.
    """
    if not beats:
        return "no heartbeat can be read"
    counted = {(beat.rank, beat.pid): beat.count for beat in before or []}
    silent = {beat.rank for beat in beats if counted.get((beat.rank, beat.pid)) == beat.count} - {reader}
    behind = min(beat.progress for beat in beats)
    late = [beat for beat in beats if beat.progress == behind]
    if len(late) == len(beats):  # all are in the same phase: blame the one that stopped beating
        late = [beat for beat in beats if beat.rank in silent]
        if not late:
            return f"all {len(beats)} ranks are in phase {beats[0].phase} of step {beats[0].step}"
    names = ", ".join(
        f"rank {beat.rank} (process {beat.pid} on {beat.host}: step {beat.step}, phase {beat.phase} for "
        f"{beat.phase_s:.0f} s{', no longer beating' if beat.rank in silent else ''})"
        for beat in late
    )
    return f"the others wait for {names}"
