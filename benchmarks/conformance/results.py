"""The measured cells, in results.json, and the page made from them."""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.page import page
from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parents[2]
PAGE, RESULTS = ROOT / "docs" / "conformance.md", Path(__file__).with_name("results.json")


def load() -> dict[str, Any]:
    """The cells so far: {"machine": …, "loaders" or "trainers": {system: {"version": …, "cells": {law: …}}}}."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"loaders": {}}


def keep(key: tuple[str, str, str], facts: Mapping[str, Any], cell: Cell, cost: Mapping[str, float]) -> None:
    """Stores a cell and its cost, and writes the page; several runs may do so at once.

    Args:
        key: kind, system and law.
        facts: about the system.
        cell: what was found.
        cost: of the measurement, by name.
    """
    kind, system, law = key
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = load()
        results["machine"] = machine()
        systems = results.setdefault(kind, {})
        cells = systems.get(system, {}).get("cells", {})
        measured = {"date": time.strftime("%Y-%m-%d"), **{name: round(value, 1) for name, value in cost.items()}}
        seen = {**asdict(cell), "seen": without_folders(cell.seen)}
        systems[system] = {**facts, "cells": cells | {law: seen | measured}}
        _write(RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        _write(PAGE, page(results))


def without_folders(text: str) -> str:
    """The text without the folders of this machine."""
    return re.sub(r"(?:/[\w.+-]+){2,}/", "…/", text)


def _write(path: Path, text: str) -> None:
    """Replaces the file at once; not by the project's own means, since the suite has to run without them."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
