"""Crash reports: what a rank that ends with an unexpected exception, or because of a hang, tells about it.

RUN/crashes/00000012/rank-00003.json   start 12, rank 3: kind, step and phase, and the exception or who hangs

The job that restarts the run and ``goodput`` read them. When one rank fails, its peers fail as well, because their
collectives do. Which one was first is judged by the times of the files, since a shared file system has one clock. Of
earlier starts only the first report is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pretrain import disk, records
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import ANSWER_S, within
from pretrain.files import make_folders
from pretrain.names import printable_in, tell
from pretrain.redaction import redacted_in

CRASHES = "crashes"
CRASH, HANG = "crash", "hang"
_SHAPE: records.Shape = {
    "kind": lambda value: value in (CRASH, HANG),
    "rank": records.whole,
    "host": records.text,
    "step": records.whole,
    "phase": records.text,
    "error": records.text,
    "ms": records.whole,
}


@dataclass(frozen=True)
class Crash:
    """A rank's exception or hang, in one line, after ``step`` steps.

    Attributes:
        kind: crash or hang.
        ms: milliseconds since the epoch, by the rank's own clock.
        time: of its file, in seconds since the epoch.
    """

    kind: str
    rank: int
    host: str
    step: int
    phase: str
    error: str
    ms: int
    time: float = 0.0

    @classmethod
    def of(cls, rank: Rank, place: tuple[int, str], error: BaseException | str) -> Crash:
        """The crash of a rank now, by an exception at a place (steps done, phase); text describes a hang instead."""
        kind, text = (HANG, error) if isinstance(error, str) else (CRASH, in_one_line(error))
        return cls(kind, rank.rank, rank.host, *place, text, round(1000 * time.time()))


def warn(text: str) -> None:
    """Prints on stderr."""
    tell(text, file=sys.stderr, flush=True)


def in_one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def report_path(run: Path, start: int, rank: int) -> Path:
    """The file of a rank's report."""
    return run / CRASHES / f"{start:08d}" / f"rank-{rank:05d}.json"


def report_crash(run: Path, start: int, crash: Crash, say: Callable[[str], None] = warn) -> None:
    """Writes a report, unless the file system does not take it in time: the process ends anyway."""
    content = asdict(crash)
    del content["time"]

    def write() -> None:
        path = report_path(run, start, crash.rank)
        try:
            make_folders(path.parent)
            records.write(path, printable_in(redacted_in(content)))
        except OSError as error:
            say(f"warning: rank {crash.rank}: no crash report: {error}")

    within(ANSWER_S, write)


def read_crashes(run: Path, start: int) -> list[Crash]:
    """The reports of a start, the first crash first; damaged ones are left out."""
    found = []
    for path in _reports(run / CRASHES / f"{start:08d}"):
        value = records.read(path, _SHAPE, without_hash=lambda value: False).value
        status = disk.current.status(path)
        if value is not None and status is not None:
            found.append(replace(Crash(**{key: value[key] for key in _SHAPE}), time=status.st_mtime))
    return sorted(found, key=lambda crash: crash.time)


def keep_first_crashes(run: Path) -> None:
    """Removes all but the first report of each start. Raises: OSError."""
    for folder in _entries(run / CRASHES):
        times = {path: status.st_mtime for path in _reports(folder) if (status := disk.current.status(path))}
        for path in sorted(times, key=lambda path: times[path])[1:]:
            disk.current.unlink(path)


def _reports(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.suffix == ".json"]


def _entries(folder: Path) -> list[Path]:
    return [folder / name for name in disk.current.entries(folder)] if disk.current.is_folder(folder) else []
