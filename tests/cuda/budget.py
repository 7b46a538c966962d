"""The budget of each layout and precision: waits, collectives and bytes of a training step, and graphs of a run.

``python -m tests.cuda.budget`` rewrites ``budget.json`` from the code as it is; review the difference before you commit
it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cuda.conftest import run_group

FILE = Path(__file__).with_name("budget.json")


def of_step(found: dict[str, Any]) -> dict[str, Any]:
    """The entry of the budget for the result of a layout: waits by place, calls and bytes by kind of collective."""
    assert found["error"] is None, found["trace"]
    collectives = {kind: {"calls": len(sizes), "bytes": sum(sizes)} for kind, sizes in found["collectives"].items()}
    return {"waits": found["waits"], "collectives": collectives}


def of_run(found: dict[str, Any]) -> dict[str, Any]:
    """The entry of a complete compiled job: the graphs that it makes."""
    assert found["error"] is None, found["trace"]
    return {"graphs": found["graphs"]}


def main() -> None:
    """Rewrites the file."""
    entries = {layout: of_step(found) for layout, found in run_group("layouts").items()}
    for layout, found in run_group("graphs").items():
        entries[layout] |= of_run(found)
    FILE.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
