"""``starts.jsonl`` in a run folder: one line when a job starts the training, one when its step has ended.

The requeue rule is a function of these lines, so they show why a job was requeued, and why it was not.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain import disk, records
from pretrain.files import make_folders

STARTS_FILE = "starts.jsonl"
MARKER = "COMPLETE.json"  # in each complete checkpoint
_CHECKPOINT = re.compile(r"step-\d{8}")
_COMMON: records.Shape = {
    "event": records.text,
    "job_id": records.text,
    "restart_count": records.whole,
    "step": records.whole,
    "time": records.moment,
}
_START: records.Shape = {
    **_COMMON,
    "nodes": records.each(records.text),
    "gpus": records.whole,
    "ranks": records.whole,
    "log": records.text,
}
_END: records.Shape = {
    **_COMMON,
    "code": lambda value: isinstance(value, int),
    "outcome": records.text,
    "decision": records.text,
    "reason": records.text,
}


@dataclass(frozen=True)
class Start:
    """A job begins to train.

    Attributes:
        job_id, restart_count: identify this start in Slurm.
        nodes: names of its nodes, including those that the step leaves idle.
        gpus, ranks: the GPUs of the job, and how many of them the step uses.
        step: of the checkpoint that it continues from; 0 without one.
        log: the job's output file.
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
    """A step has ended: ``outcome`` is complete, requeue, fatal or crash; ``decision`` is what the job did next."""

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
    make_folders(run)
    line = json.dumps({"event": type(entry).__name__.lower(), **asdict(entry)}, ensure_ascii=False)
    disk.current.append(run / STARTS_FILE, f"{line}\n".encode(), durable=True)


def read(run: Path) -> list[Start | End]:
    """All lines in order; a damaged or truncated line is skipped."""
    entries: list[Start | End] = []
    for line in records.read_lines(run / STARTS_FILE, _COMMON).values:
        shape = {"start": _START, "end": _END}.get(line["event"], {})
        if line.keys() != shape.keys() or records.misfit(line, shape) is not None:
            continue
        del line["event"]
        entries.append(Start(**{**line, "nodes": tuple(line["nodes"])}) if shape is _START else End(**line))
    return entries


def starts(run: Path) -> list[Start]:
    """Only the starts, in order."""
    return [entry for entry in read(run) if isinstance(entry, Start)]


def checkpoint_step(run: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    folder = run / "checkpoints"
    try:
        names = [name for name in disk.current.entries(folder) if _CHECKPOINT.fullmatch(name)]
        return max((int(name[5:]) for name in names if disk.current.exists(folder / name / MARKER)), default=0)
    except OSError:  # missing, or the file server does not answer: not reliable
        return 0


def restarts_without_progress(entries: list[Start], job_id: str, step: int) -> int:
    """How many consecutive starts of this job continued from ``step``, not counting the first.

    Args:
        entries: the starts of the run.
        job_id: only its own starts count: a user who submits again begins a new count.
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
