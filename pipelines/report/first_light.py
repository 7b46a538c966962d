"""The page of a first light: every finding with its figures, and the machine that they were measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.nodes.checks import FIRST_LIGHT
from pipelines.pages.templates import render
from pretrain.errors import DataError

LONG = ("driver", "links")  # answers of several lines


def read(path: Path) -> dict[str, Any]:
    """The content of ``first_light.json``.

    Raises:
        DataError: it is not such a file.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a run folder or a first_light.json") from error
    if not isinstance(found, dict) or found.get("format") != FIRST_LIGHT:
        raise DataError(
            f"{path} is not the result of a first light ({FIRST_LIGHT!r}): make one with python -m pipelines doctor "
            "--first-light"
        )
    return found


def page(found: Mapping[str, Any], path: Path) -> str:
    """The page as HTML."""
    environment = found["environment"]
    return render(
        "first_light.html",
        title=f"First light: {_short(environment.get('gpus')) or 'CPU'}",
        path=path,
        rows=[[one["level"], one["probe"], one["text"]] for one in found["findings"]],
        details=[section for one in found["findings"] if (section := _details(one)) is not None],
        facts=[[name, _short(value)] for name, value in environment.items() if name not in LONG],
        long=[(name, environment[name]) for name in LONG if environment.get(name)],
    )


def _details(finding: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of one finding: its rows as a table, every other value below. None if it has neither."""
    values = finding["values"]
    rows = [row for row in values.get("rows", []) if isinstance(row, Mapping)]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    others = [[key, _short(value)] for key, value in values.items() if key != "rows"]
    if not (rows or others or finding["remedy"]):
        return None
    return {
        "title": finding["probe"],
        "remedy": finding["remedy"] or "",
        "heads": heads,
        "rows": [[_short(row.get(key, "")) for key in heads] for row in rows],
        "others": others,
    }


def _short(value: Any) -> str:
    """A value in few characters: numbers with five digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_short, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(one)}" for key, one in value.items())
    return "" if value is None else str(value)
