"""The result of a run as a page shows it: predictions with their images, classes, data, duplicates, and loading code.

Nothing is predicted here: ``evaluate`` has written what its folder holds. For data that is missing, the page has the
command that produces it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.report.beside import card_of, duplicates_of, programs_of
from pipelines.report.confusion import matrix_of
from pipelines.report.pictures import Shown, shown_with_pictures
from pipelines.report.series import RunView
from pipelines.weights.results import CLASSES_FILE, ClassScore, Result
from pretrain.errors import ConfigError

MOST_PICTURES = 96  # of all runs of a page, so that it stays small
MOST_OF_ONE = 12
MOST_CLASSES = 100
MOST_COMMANDS = 3


class Missing(NamedTuple):
    """A section that is left out: what, the command that produces its data, and the option that then shows it."""

    what: str
    command: str
    then: str
    run: str = ""


def by_run(views: Sequence[RunView], results: Sequence[Result]) -> dict[str, list[Result]]:
    """Name of a run → its results.

    Raises:
        ConfigError: a result belongs to none of the runs.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        source = result.source.resolve()
        owners = [view.name for view in views if source.is_relative_to(view.record.path.resolve())]
        if not owners:
            raise ConfigError(
                f"--results {result.folder}: these are the results of {result.source}, which is not a run of this "
                "page; name that run too, or evaluate one of the runs"
            )
        found.setdefault(owners[0], []).append(result)
    return found


def content(
    views: Sequence[RunView],
    results: Mapping[str, Sequence[Result]],
    duplicates: Path | None,
    export: Path | None,
    price: float | None,
) -> dict[str, Any]:
    """The sections, as the template takes them.

    Raises:
        DataError: a folder cannot be used.
    """
    pairs = [(name, result) for name, several in results.items() for result in several]
    most = max(1, min(MOST_OF_ONE, MOST_PICTURES // max(1, 2 * len(pairs))))
    return {
        "results": [_of_result(name, result, most) for name, result in pairs],
        "cards": [card for view in _one_per_set(views) if (card := card_of(view.settings.get("data.shards")))],
        "duplicates": None if duplicates is None else duplicates_of(duplicates),
        "programs": [] if export is None else programs_of(export),
        "lacking": {
            "results": _without_results(views, results),
            "duplicates": _without_duplicates(views) if duplicates is None else [],
            "baseline": _without_baseline(views),
            "rest": (_without_export(views) if export is None else [])
            + (_without_cost(views) if price is None else []),
        },
    }


def _of_result(run: str, result: Result, most: int) -> dict[str, Any]:
    wrong, step = result.mistakes, max(1, len(result.predictions) // most)
    (samples, mistakes), problem = shown_with_pictures(result, [result.predictions[::step][:most], wrong[:most]])
    classes = result.classes
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda row: (row.recall is None, row.recall or 0.0))[:MOST_CLASSES]
    return {
        "run": run,
        "set": result.shards,
        "samples": samples,
        "mistakes": mistakes,
        "mistakes_title": _title(mistakes, len(wrong), len(result.predictions)),
        "problem": problem,
        "matrix": matrix_of(result),
        "classes": [_row(row) for row in classes],
        "num_classes_left_out": len(result.classes) - len(classes),
        "file": result.folder / CLASSES_FILE,
    }


def _title(shown: Sequence[Shown], num_wrong: int, num_images: int) -> str:
    total = f"{num_wrong:,} of {num_images:,} images are wrong"
    return (
        f"Most confident mistakes ({len(shown)} of them; {total})" if len(shown) < num_wrong else f"Mistakes: {total}"
    )


def _row(row: ClassScore) -> list[str]:
    shares = ("–" if share is None else f"{100 * share:.1f} %" for share in (row.recall, row.precision))
    return [row.name, f"{row.num_samples:,}", *shares]


def _one_per_set(views: Sequence[RunView]) -> list[RunView]:
    return list({str(view.settings.get("data.shards")): view for view in reversed(views)}.values())[::-1]


def _without_results(views: Sequence[RunView], results: Mapping[str, Sequence[Result]]) -> list[Missing]:
    what = "No sample images, confusion matrix, classes or mistakes"
    found = []
    for view in views:
        if results.get(view.name):
            continue
        folder = f"results/{view.name}"
        command = _command("evaluate", _evaluated_set(view), "--from", view.record.path, "--out", folder)
        name = f"{what} of {view.name}" if len(views) > 1 else what
        found.append(Missing(name, command, f"report … --results {shlex.quote(folder)}", view.name))
    return found[:MOST_COMMANDS]


def _without_baseline(views: Sequence[RunView]) -> list[Missing]:
    """The training of the page's only run without its weights, if it started from some."""
    view = views[0]
    if len(views) > 1 or not view.settings.get("init.from") or not view.launches:
        return []
    words = [str(word) for word in view.launches[0].get("command", [])]
    starts = [index for index, word in enumerate(words) if word == "--from"]
    left = {place for index in starts for place in (index, index + 1)}
    left |= {index for index, word in enumerate(words) if word.startswith(("init.from=", "--from=", "name="))}
    kept = [word for index, word in enumerate(words) if index not in left]
    other = f"{view.name}_scratch"
    then = shlex.join(["report", str(view.record.path), str(view.record.path.with_name(other))])
    return [Missing("No baseline from scratch", shlex.join(["python", *kept, f"name={other}"]), f"{then} …")]


def _without_duplicates(views: Sequence[RunView]) -> list[Missing]:
    view = views[0]
    shards, out = view.settings.get("data.shards") or "TRAIN", f"results/{view.name}_duplicates"
    command = _command("dedup", shards, "--against", _evaluated_set(view), "--out", out)
    return [Missing("No search for duplicates", command, f"report … --duplicates {shlex.quote(out)}")]


def _without_export(views: Sequence[RunView]) -> list[Missing]:
    out = f"exports/{views[0].name}"
    command = _command("export", views[0].record.path, "--format", "hf", "--out", out)
    return [Missing("No code that loads an export", command, f"report … --export {shlex.quote(out)}")]


def _without_cost(views: Sequence[RunView]) -> list[Missing]:
    known = any(view.device_hours for view in views)
    return [Missing("No cost; a device-hour that costs 2.50", "report … --price 2.5", "")] if known else []


def _evaluated_set(view: RunView) -> str:
    """The set of the run's first evaluation that has one of its own."""
    for key, value in view.settings.items():
        words = key.split(".")
        if words[:2] == ["evaluation", "sets"] and words[-1] == "shards" and isinstance(value, str):
            return value
    return "SPLIT"


def _command(*words: object) -> str:
    return shlex.join(["python", "-m", "pipelines", *map(str, words)])
