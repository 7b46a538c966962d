"""Heartbeats: which rank is in which phase. Hang messages, ``status`` and ``watch`` read them.

Every rank beats each second into a folder in its node's memory, where no file server can block it. The lowest rank that
beats there copies the beats of its node into one file of the run folder, so the load on the shared file system grows
with the number of nodes, not of ranks.

/dev/shm/vit-pretrain-START-HOST/rank-00003.json   one rank; START differs for every start of a job
RUN/heartbeats/node-00000.json                     all ranks of a node, written by its rank 0
RUN/heartbeats/rank-00003.json                     one rank, written by earlier versions

Whether another rank still beats is judged by its count, not by a clock: clocks differ between hosts and are adjusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pretrain import disk, records, threads
from pretrain.files import TEMPORARY_SUFFIX, make_folders, remove_tree
from pretrain.names import tell

INTERVAL_S = 1.0  # between two beats of a rank
SILENT_S = 3 * INTERVAL_S  # a rank of this node that has not beaten for this long is silent
PUBLISH_S = 10.0  # between two writes of a node to the run folder
SILENT_ELSEWHERE_S = 2.5 * PUBLISH_S
LEFTOVER_S = 86_400.0  # a folder in memory without a beat for this long belongs to a job that was killed
# Phase → the limit in cluster.phase_limits_s that it has. Ordered as within a run and within a step: of two ranks at
# the same step, the one in the earlier phase is behind.
PHASES = {
    "import": "start",  # importing torch
    "join": "start",  # meeting the other ranks, opening the run folder
    "choose": "load",  # rank 0 verifies checkpoints; the others wait
    "start": "start",
    "load": "load",
    "data": "data",
    "step": "step",
    "save": "save",
    "evaluate": "evaluate",
    "end": "save",
}
STARTING = ("import", "join", "choose", "start")
_PREFIX = "vit-pretrain-"
_OF_RANK, _OF_NODE = re.compile(r"rank-\d+\.json"), re.compile(r"node-\d+\.json")
_SHAPE: records.Shape = {
    **dict.fromkeys(("rank", "pid", "step", "count"), records.whole),
    "phase_s": records.number,
    "host": records.text,
    "phase": lambda value: isinstance(value, str) and value in PHASES,
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
    count: int = 0

    @property
    def progress(self) -> tuple[int, int]:
        """Sort key that puts the rank that is furthest behind first."""
        return self.step, list(PHASES).index(self.phase)

    @property
    def is_starting(self) -> bool:
        """Whether the rank is still being set up."""
        return self.phase in STARTING


class Heartbeats:
    """The heartbeats of this rank, and of its node.

    Args:
        start: identifies this start of the job: equal on all of its ranks, different for every start.
        host: this node. Containers that share their host's memory are nodes of their own.
        now: → the phase of this rank.
    """

    def __init__(self, start: str, host: str, now: Callable[[], Beat]) -> None:
        self._now, self._count = now, 0
        self._memory = _memory() / f"{_PREFIX}{start}-{host}"
        self._published: Path | None = None
        self._ended, self._unpublished = threading.Event(), threading.Event()
        self._in_trouble: set[Path] = set()

    def begin(self) -> Heartbeats:
        """Begins to beat in the node's memory."""
        _remove_leftovers(self._memory.parent)
        self._beat()
        self._beating = threads.start("heartbeat", self._beat_on)
        return self

    def publish_in(self, folder: Path) -> None:
        """Begins to copy the beats of this node into a folder that all nodes share, if that is up to this rank.

        In a thread of its own: a file server that hangs stops the copies only.
        """
        self._published = folder
        threads.start("heartbeat-copy", self._publish_on)

    def stop_publishing(self) -> None:
        """Writes nothing more into the shared folder, unless a write is stuck there."""
        self._unpublished.set()

    def stop(self) -> None:
        """Stops beating, and removes the beats from the node's memory."""
        self.stop_publishing()
        self._ended.set()
        self._beating.join(timeout=INTERVAL_S)  # or it might write once more
        with contextlib.suppress(OSError):
            disk.current.unlink(self._path)
            disk.current.remove_folder(self._memory)  # by the last rank of the node

    def read_node(self) -> list[Beat]:
        """The newest beats of the ranks of this node."""
        return read_beats(self._memory)

    def read(self) -> list[Beat]:
        """The newest beats of all ranks. May block if the shared file system does."""
        elsewhere = [] if self._published is None else read_beats(self._published)
        return _newest([*self.read_node(), *elsewhere])

    @property
    def is_published(self) -> bool:
        """Whether the ranks of other nodes see this node's beats."""
        return self._published is not None

    @property
    def _path(self) -> Path:
        return self._memory / f"rank-{self._now().rank:05d}.json"

    def _beat_on(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._beat()

    def _beat(self) -> None:
        self._count += 1
        self._try_to_write(self._path, asdict(replace(self._now(), count=self._count)))

    def _publish_on(self) -> None:
        assert self._published is not None
        before: dict[int, int] = {}
        while True:
            own = replace(self._now(), count=self._count)
            beats = _newest([*self.read_node(), own])
            beating = {beat.rank for beat in beats if before.get(beat.rank) != beat.count} | {own.rank}
            before = {beat.rank: beat.count for beat in beats}
            if own.rank == min(beating):
                path = self._published / f"node-{own.rank:05d}.json"
                self._try_to_write(path, {"beats": [asdict(beat) for beat in beats]})
            if self._unpublished.wait(PUBLISH_S):
                return

    def _try_to_write(self, path: Path, content: dict[str, object]) -> None:
        """Writes a file that may get lost; a failure is reported once, since a full disk must not end a run."""
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        try:
            make_folders(path.parent)
            disk.current.write(temporary, json.dumps(content).encode())
            disk.current.rename(temporary, path)
            self._in_trouble.discard(path)
        except OSError as error:
            if path not in self._in_trouble:
                tell(f"rank {self._now().rank}: heartbeat {path} not written: {error}", file=sys.stderr, flush=True)
            self._in_trouble.add(path)


def read_beats(folder: Path) -> list[Beat]:
    """The newest heartbeat of every rank, in rank order; unreadable ones, and those of other forms, are left out."""
    try:
        names = disk.current.entries(folder)
    except OSError:
        return []
    beats = [records.read(folder / name).value for name in names if _OF_RANK.fullmatch(name)]
    for name in filter(_OF_NODE.fullmatch, names):
        node = records.read(folder / name, {"beats": records.each(records.fields)}).value
        beats += [] if node is None else node["beats"]
    usable = [beat for beat in beats if beat is not None and records.misfit(beat, _SHAPE) is None]
    return _newest(Beat(**{key: beat[key] for key in _SHAPE}) for beat in usable)


def remove_beats(folder: Path) -> None:
    """Removes the heartbeats of earlier starts, whose ranks may not exist any more. Raises: OSError."""
    if disk.current.is_folder(folder):
        for name in disk.current.entries(folder):
            disk.current.unlink(folder / name)


def accuse(
    beats: list[Beat], before: list[Beat] | None = None, *, reader: int | None = None, world: int | None = None
) -> str:
    """Names the ranks that the others wait for.

    Args:
        beats: of all ranks.
        before: the heartbeats ``SILENT_S`` earlier; a rank that has not beaten since is silent. None: unknown.
        reader: the calling rank, which is not silent.
        world: the number of ranks; those without a heartbeat are named. None: unknown.
    """
    missing = sorted(set(range(world or 0)) - {beat.rank for beat in beats})
    if not beats:
        return "no heartbeat can be read"
    counted = {(beat.rank, beat.pid): beat.count for beat in before or []}
    silent = {beat.rank for beat in beats if counted.get((beat.rank, beat.pid)) == beat.count} - {reader}
    behind = min(beat.progress for beat in beats)
    late = [beat for beat in beats if beat.progress == behind]
    if len(late) == len(beats):  # all are in the same phase: blame the one that stopped beating
        late = [beat for beat in beats if beat.rank in silent]
    if late:
        names = ", ".join(
            f"rank {beat.rank} (process {beat.pid} on {beat.host}: step {beat.step}, phase {beat.phase} for "
            f"{beat.phase_s:.0f} s{', no longer beating' if beat.rank in silent else ''})"
            for beat in late
        )
        text = f"the others wait for {names}"
    else:
        text = f"all {len(beats)} ranks are in phase {beats[0].phase} of step {beats[0].step}"
        text = text.replace("all 1 ranks are", "1 rank is") if len(beats) == 1 and missing else text
    return f"{text}; no heartbeat of {ranks(missing)} can be read" if missing else text


def ranks(numbers: Iterable[int], most: int = 16) -> str:
    """``rank 3``, or ``ranks 3, 4 and 9 more``."""
    found = sorted(numbers)
    shown = ", ".join(map(str, found[:most]))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{'rank' if len(found) == 1 else 'ranks'} {shown}{more}"


def _newest(beats: Iterable[Beat]) -> list[Beat]:
    """One beat per rank: where another rank of a node took over its file, the old file has older counts."""
    newest: dict[int, Beat] = {}
    for beat in beats:
        if beat.rank not in newest or beat.count > newest[beat.rank].count:
            newest[beat.rank] = beat
    return [newest[rank] for rank in sorted(newest)]


def _memory() -> Path:
    """A folder in memory that all processes of this node share; where there is none, the one for temporary files."""
    memory = Path("/dev/shm")
    return memory if disk.current.is_folder(memory) and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def _remove_leftovers(memory: Path) -> None:
    """Removes the beats of jobs that were killed."""
    with contextlib.suppress(OSError):
        for name in disk.current.entries(memory):
            status = disk.current.status(memory / name) if name.startswith(_PREFIX) else None
            if status is not None and time.time() - status.st_mtime > LEFTOVER_S:
                remove_tree(memory / name)
