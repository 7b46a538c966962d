"""Where a run comes from: its settings, drawings of its weights, machines, packages and commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.pages.templates import when
from pipelines.report import series
from pipelines.report.events import outcomes
from pipelines.report.pictures import drawings_of
from pipelines.report.series import RunView
from pipelines.runs.run_record import CONFIG
from pretrain.config.changes import flatten

# Keys of a start that do not describe the machine.
NO_ENVIRONMENT = frozenset({"kind", "step", "time", "command", "digest", "provenance"})


def content(views: Sequence[RunView], *, command: Sequence[str], figures: Path | None) -> dict[str, Any]:
    """The sections, as the template takes them.

    Raises:
        DataError: a drawing cannot be read.
    """
    return {
        "settings": _differences(views) if len(views) > 1 else _written(views[0]),
        "drawings": [] if figures is None else drawings_of(figures),
        "machines": _machines(views),
        "starts": _starts(views),
        "commands": _commands(views, command),
        "configs": [{"run": view.name, "content": text} for view in views if (text := _config(view))],
    }


def _written(view: RunView) -> dict[str, Any]:
    return {
        "title": "Settings",
        "note": "Settings that were written somewhere, and where; all others have their defaults.",
        "heads": ["key", "value", "written in"],
        "rows": [[key, value, place] for key, (value, place) in view.written.items()],
        "columns": [],
    }


def _differences(views: Sequence[RunView]) -> dict[str, Any]:
    names = [view.name for view in views]
    return {
        "title": "Settings that differ",
        "note": "",
        "heads": ["key", *names],
        "rows": [[key, *values] for key, values in series.different_settings(views).items()],
        "columns": ["", *names],
    }


def _config(view: RunView) -> str:
    try:
        return (view.record.path / CONFIG).read_text(errors="replace")
    except OSError:
        return ""


def _machines(views: Sequence[RunView]) -> list[dict[str, Any]]:
    """The machine and packages of a run's first start, and what was different in the later ones."""
    parts = []
    for view in views:
        found = [dict(flatten(_kept(launch))) for launch in view.launches]
        for index, now in enumerate(found):
            before = found[index - 1] if index else {}
            rows = [[key, value] for key, value in now.items() if before.get(key) != value]
            rows += [[key, "(no more)"] for key in before if key not in now]
            title = f"{view.name}, start {index + 1}" if len(found) > 1 else view.name
            if index:
                title += ": what was different" if rows else ": as before"
            parts.append({"run": view.name, "title": title, "rows": rows})
    return parts


def _kept(launch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in launch.items() if key not in NO_ENVIRONMENT}


def _starts(views: Sequence[RunView]) -> dict[str, Any]:
    """Every start of every run with its outcome."""
    rows = []
    for view in views:
        came = outcomes(view.record.events, len(view.launches))
        for launch, outcome in zip(view.launches, came, strict=True):
            ranks = f"{launch.get('world_size', '?')}, {launch.get('launcher', '?')}"
            words = shlex.join(launch.get("command", []))
            rows.append([view.name, f"{launch['step']:,}", when(float(launch["time"])), outcome, ranks, words])
    alone = [view.name for view in views if view.launches and not view.record.launches]
    return {"rows": rows, "runs": [row[0] for row in rows], "alone": ", ".join(alone)}


def _commands(views: Sequence[RunView], command: Sequence[str]) -> str:
    """The commands of the data and of this report."""
    sets = dict.fromkeys(view.settings.get("data.shards") for view in views)
    return "\n".join([*(line for shards in sets for line in _packed(shards)), "# this report", " ".join(command)])


def _packed(shards: str | None) -> list[str]:
    """How a packed set was made, from the record next to it."""
    try:
        options = json.loads((Path(shards or "").parent / "pack.json").read_text())["options"]
    except (OSError, ValueError, KeyError):
        return []
    given = ", ".join(f"{key} {value}" for key, value in options.items() if value not in ("", 0, False, None))
    return [f"# {shards}: python -m pipelines pack with", given]
