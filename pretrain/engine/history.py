"""Events of a run that are not visible in its curve, one line of ``history.jsonl`` each.

The first event of every command that trains into the folder is ``launch``, with its machine. It is followed by
``start`` (from the seed or given weights), ``resume`` or ``fork`` (with its parent), and later ``change`` (settings
that differ from this step on, so the curve may jump) and ``rollback``. A report marks these.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import disk, records
from pretrain.names import printable_in
from pretrain.redaction import redacted_in

KINDS = ("launch", "start", "resume", "fork", "change", "rollback")


def _changed_setting(value: Any) -> bool:
    return isinstance(value, dict) and {"key", "old", "new"} <= value.keys()


# Description of the machine in environment.json and in ``launch`` events.
ENVIRONMENT: records.Shape = {
    "world_size?": records.whole,
    "command?": records.each(records.text),
    "packages?": records.fields,
    "variables?": records.fields,
    "provenance?": lambda value: isinstance(value, dict) and all(map(records.text, value.values())),
    **dict.fromkeys(("python?", "platform?", "host?", "device?", "launcher?"), records.text),
}
SHAPE: records.Shape = {
    **ENVIRONMENT,
    "kind": lambda value: value in KINDS,
    "step": records.whole,
    "time": records.moment,
    "settings?": records.each(_changed_setting),
    "lr?": records.each(records.number, 2),
    "skipped_window?": records.each(records.whole, 2),
    "back_to?": records.whole,
}


def record(path: Path, kind: str, step: int, **details: Any) -> None:
    """Appends one line durably. Rank 0 only. Raises: OSError."""
    assert kind in KINDS
    content = {"kind": kind, "step": step, "time": round(time.time(), 3), **details}
    line = json.dumps(printable_in(redacted_in(content)), ensure_ascii=False)
    disk.current.append(path, f"{line}\n".encode(), durable=True)


def try_to_record(path: Path, kind: str, step: int, say: Callable[[str], None], **details: Any) -> None:
    """As ``record``, but a line that cannot be written is reported and does not end the run."""
    try:
        record(path, kind, step, **details)
    except OSError as error:
        say(f"warning: {path} cannot be written, so it lacks the {kind} at step {step}: {error}")


def read(path: Path) -> list[dict[str, Any]]:
    """All lines, the oldest first; damaged or truncated lines are left out."""
    return records.read_lines(path, SHAPE).values
