"""Where measurements go: a JSON line each in metrics.jsonl, and TensorBoard. Only rank 0 has sinks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Takes one event: a kind (train, eval, save, resume, …), the step and its numbers."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlSink:
    """Appends lines to metrics.jsonl; a resumed run goes on in the same file, the later line of a step counts."""

    def __init__(self, path: Path) -> None:
        _end_last_line(path)
        self._file = open(path, "a", buffering=1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Event files; what a killed run wrote after the step it resumes from is purged from the display."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Step → the last line of this kind for it; a line cut short by a kill is passed over."""
    lines: dict[int, dict[str, Any]] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["kind"] == kind:
            lines[line["step"]] = line
    return lines


def _end_last_line(path: Path) -> None:
    """A kill may have cut the last line: ends it, so that the next line stands alone."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with open(path, "a") as file:
            file.write("\n")
