"""The events that decide the speed of a GPU: waits of the host for it, and collectives."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = ("pretrain/", "pipelines/")
THEIRS = ("deepspeed/", "accelerate/")  # in site-packages


@dataclass
class Record:
    """Everything that happened while it was the current record.

    Attributes:
        waits: (kind, place in the source) → how often the host waited for the device.
        collectives: kind of collective → bytes of the unsharded tensor, of each call.
        graphs: how many Dynamo made.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    collectives: dict[str, list[int]] = field(default_factory=dict)
    graphs: int = 0


_records: list[Record] = []


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """A record of all events in this context; an inner record takes the events of an outer one."""
    record = Record()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


def waited(kind: str) -> None:
    """Records that the host waits for the device here."""
    if _records:
        _records[-1].waits[kind, place()] += 1


def communicated(kind: str, num_bytes: int) -> None:
    """Records a collective."""
    if _records:
        _records[-1].collectives.setdefault(kind, []).append(num_bytes)


def place() -> str:
    """The innermost function of the project, DeepSpeed or Accelerate that is running, as FILE:FUNCTION.

    Without a line number, so that a budget stays valid when a file is edited.
    """
    frame = sys._getframe(1)
    while frame is not None:
        path = _known(frame.f_code.co_filename)
        if path is not None:
            return f"{path}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _known(filename: str) -> str | None:
    if filename.startswith(str(ROOT)) and "site-packages" not in filename:
        relative = filename[len(str(ROOT)) + 1 :]
        return relative if relative.startswith(OURS) else None
    _, _, relative = filename.partition("site-packages/")
    return relative if relative.startswith(THEIRS) else None
