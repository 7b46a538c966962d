"""``starts.jsonl`` in a run folder: one line when a job starts the training, one when its step has ended.

A job starts it when it gets its nodes, and again on the nodes that it has left when a rank or node has failed. The rule
that decides between a restart, a requeue and an end is a function of these lines, so they show why it was chosen.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain import disk, records
from pretrain.engine.run_folder import read_events
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
_FAILURE: records.Shape = {
    "node": records.text,
    "rank": lambda value: value is None or records.whole(value),
    "step": records.whole,
    "error": records.text,
    "has_trained": lambda value: isinstance(value, bool),
    "failed_at": records.moment,
    "detected_at": records.moment,
}
_END: records.Shape = {
    **_COMMON,
    "code": lambda value: isinstance(value, int),
    "outcome": records.text,
    "decision": records.text,
    "reason": records.text,
    "failure?": lambda value: value is None or (isinstance(value, dict) and records.misfit(value, _FAILURE) is None),
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
class Failure:
    """The first rank or node to fail, which ended the step for all.

    Attributes:
        node: its name; empty if unknown.
        rank: None if unknown, or if the node failed with all of its ranks.
        step: steps done by then.
        error: in one line.
        has_trained: whether a step was done since this start.
        failed_at, detected_at: seconds since the epoch.
    """

    node: str
    rank: int | None
    step: int
    error: str
    has_trained: bool
    failed_at: float
    detected_at: float

    @property
    def place(self) -> str:
        """Rank and node, as far as they are known."""
        rank = "" if self.rank is None else f"rank {self.rank}"
        return " on ".join(filter(None, (rank, self.node)))

    def __str__(self) -> str:
        return f"{self.place or 'a rank'}: {self.error} (after step {self.step})"


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
    failure: Failure | None = None


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
        known = {key.removesuffix("?") for key in shape}
        if not line.keys() <= known or records.misfit(line, shape) is not None:
            continue
        del line["event"]
        entries.append(Start(**{**line, "nodes": tuple(line["nodes"])}) if shape is _START else _end(line))
    return entries


def _end(line: dict[str, Any]) -> End:
    failure = line.pop("failure", None)
    return End(**line, failure=None if failure is None else Failure(**failure))


def failures(entries: Iterable[Start | End], job_id: str) -> list[Failure]:
    """The failures of a job, the oldest first."""
    return [entry.failure for entry in entries if isinstance(entry, End) and entry.job_id == job_id and entry.failure]


def starts(run: Path) -> list[Start]:
    """Only the starts, in order."""
    return [entry for entry in read(run) if isinstance(entry, Start)]


def checkpoint_step(run: Path) -> int:
    """The step of the newest complete checkpoint, or of a fast one that the run resumed from; 0 without any.

    Fast checkpoints are on the nodes, where a job script does not look; without them, a job that dies more often than
    it saves to the shared disk would seem to make no progress.
    """
    folder, resumed = run / "checkpoints", [0]
    try:
        resumed += [event["step"] for event in read_events(run / "history.jsonl") if event["kind"] == "resume"]
        names = [name for name in disk.current.entries(folder) if _CHECKPOINT.fullmatch(name)]
        return max(resumed + [int(name[5:]) for name in names if disk.current.exists(folder / name / MARKER)])
    except OSError:  # missing, or the file server does not answer: not reliable
        return max(resumed)


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
