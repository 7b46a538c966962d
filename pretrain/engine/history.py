"""What happened to a run that its curve alone does not show: a line of ``history.jsonl`` for each.

``launch`` (every command that trained into the folder, with its machine), then what came of it: ``start`` (from the
seed or given weights), ``resume``, ``fork`` (with its parent), ``change`` (settings that differ from this step on: the
curve may jump), ``rollback``. A report marks these.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

KINDS = ("launch", "start", "resume", "fork", "change", "rollback")


def record(path: Path, kind: str, step: int, **details: Any) -> None:
    """Appends one line durably. Rank 0 only."""
    assert kind in KINDS
    line = json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **details}, ensure_ascii=False)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")  # a kill may have cut the last line
    with open(path, "a") as file:
        file.write(("" if whole else "\n") + line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """All lines, the oldest first; one that a kill cut is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
