"""The starts of a run: every command with its outcome, and the machine and packages of each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.report.events import outcomes
from pipelines.report.markup import table, text, when
from pipelines.report.series import RunView
from pretrain.config.changes import flatten

# Keys of a start that do not describe the machine.
NO_ENVIRONMENT = frozenset({"kind", "step", "time", "command", "digest", "provenance"})


def environments(views: Sequence[RunView]) -> str:
    """The machine and packages of a run's first start, and what was different in the later ones."""
    parts = []
    for view in views:
        found = [dict(flatten(_kept(launch))) for launch in view.launches]
        for index, now in enumerate(found):
            before = found[index - 1] if index else {}
            rows = [[text(key), text(value)] for key, value in now.items() if before.get(key) != value]
            rows += [[text(key), "(no more)"] for key in before if key not in now]
            title = f"{text(view.name)}, start {index + 1}" if len(found) > 1 else text(view.name)
            if index:
                title += ": what was different" if rows else ": as before"
            parts.append(f"<details><summary>{title}</summary>{table(rows)}</details>" if rows else f"<p>{title}</p>")
    return "<h2>Environment</h2>" + "".join(parts) if parts else ""


def _kept(launch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in launch.items() if key not in NO_ENVIRONMENT}


def commands(views: Sequence[RunView], command: Sequence[str]) -> str:
    """Every start of every run with its outcome, then the commands of the data and of this report."""
    rows = []
    for view in views:
        came = outcomes(view.record.events, len(view.launches))
        for launch, outcome in zip(view.launches, came, strict=True):
            rows.append(
                [
                    text(view.name),
                    f"{launch['step']:,}",
                    when(float(launch["time"])),
                    text(outcome),
                    text(f"{launch.get('world_size', '?')}, {launch.get('launcher', '?')}"),
                    f"<code>{text(shlex.join(launch.get('command', [])))}</code>",
                ]
            )
    heads = ["run", "from step", "time", "", "ranks", "command"]
    alone = [view.name for view in views if view.launches and not view.record.launches]
    note = ""
    if alone:
        note = f'<p class="dim">Of {text(", ".join(alone))} only the last start is known (an older version).</p>'
    lines = [
        line for shards in dict.fromkeys(view.settings.get("data.shards") for view in views) for line in _packed(shards)
    ]
    lines.append(f"# this report\n{' '.join(command)}")
    return f"<h2>Commands</h2>{table(rows, heads)}{note}<pre>{text(chr(10).join(lines))}</pre>"


def _packed(shards: str | None) -> list[str]:
    """How a packed set was made, from the record next to it."""
    try:
        options = json.loads((Path(shards or "").parent / "pack.json").read_text())["options"]
    except (OSError, ValueError, KeyError):
        return []
    given = ", ".join(f"{key} {value}" for key, value in options.items() if value not in ("", 0, False, None))
    return [f"# {shards}: python -m pipelines pack with", given]
