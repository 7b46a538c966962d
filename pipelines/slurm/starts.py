"""``starts.jsonl`` in a run folder: one line when a job starts the training, one when its step has ended.

The rule of requeueing is a function of these lines: whoever reads them sees why a job came back, and why it did not.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.files import TEMPORARY_SUFFIX

STARTS_FILE = "starts.jsonl"
MARKER = "COMPLETE.json"  # in each complete checkpoint


@dataclass(frozen=True)
class Start:
    """A job begins to train.

    Attributes:
        job_id, restart_count: Slurm's names of this start.
        nodes: its nodes by name; those that the step leaves idle too.
        gpus, ranks: what the job got, and how many of them the step uses.
        step: of the checkpoint that it goes on from; 0 without one.
        log: where the job writes.
        time: seconds since the epoch.
    """

    job_id: str
    restart_count: int
    nodes: tuple[str, ...]
    gpus: int
    ranks: int
    step: int
    log: str
    time: float


@dataclass(frozen=True)
class End:
    """A step has ended: ``outcome`` is complete, requeue, fatal or crash; ``decision`` is what the job did then."""

    job_id: str
    restart_count: int
    step: int
    code: int
    outcome: str
    decision: str
    reason: str
    time: float


def append(run: Path, entry: Start | End) -> None:
    """Adds one line, durably."""
    run.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": type(entry).__name__.lower(), **asdict(entry)}, ensure_ascii=False)
    with open(run / STARTS_FILE, "a") as file:
        if file.tell() and not _ends_with_newline(run / STARTS_FILE):
            file.write("\n")
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(run: Path) -> list[Start | End]:
    """All lines in order; one that a failing node cut short is passed over."""
    path, entries = run / STARTS_FILE, []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            fields: dict[str, Any] = json.loads(text)
            event = fields.pop("event")
            if event == "start":
                entries.append(Start(**{**fields, "nodes": tuple(fields["nodes"])}))
            elif event == "end":
                entries.append(End(**fields))
        except (ValueError, TypeError, KeyError):
            continue
    return entries


def starts(run: Path) -> list[Start]:
    """Only the starts, in order."""
    return [entry for entry in read(run) if isinstance(entry, Start)]


def checkpoint_step(run: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    steps = [
        int(marker.parent.name.removeprefix("step-"))
        for marker in (run / "checkpoints").glob(f"step-*/{MARKER}")
        if not marker.parent.name.endswith(TEMPORARY_SUFFIX)
    ]
    return max(steps, default=0)


def restarts_without_progress(entries: list[Start], job_id: str, step: int) -> int:
    """How many starts of this job in a row went on from ``step``, less the first of them.

    Args:
        entries: the starts of the run.
        job_id: only its own starts count: a person who submits again begins a new count.
        step: of the newest complete checkpoint now.
    """
    count = 0
    for entry in reversed(entries):
        if entry.job_id != job_id or entry.step != step:
            break
        count += 1
    return max(0, count - 1)


def now() -> float:
    """Seconds since the epoch, to the millisecond."""
    return round(time.time(), 3)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
