"""The page of one run or of several: puts the content of its sections into the template."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.pages.templates import render
from pipelines.report import curves, goodput, origin, result, summary
from pipelines.report.series import RunView
from pipelines.weights.results import Result


@dataclass(frozen=True)
class Extras:
    """The parts of a page that do not come from its runs.

    Attributes:
        results: folders of ``evaluate``.
        figures: the folder of ``figures``.
        duplicates: the folder of ``dedup``.
        export: the folder of ``export``.
        price: money per device and hour.
    """

    results: Sequence[Result] = ()
    figures: Path | None = None
    duplicates: Path | None = None
    export: Path | None = None
    price: float | None = None


def page(views: Sequence[RunView], extras: Extras, *, command: Sequence[str]) -> str:
    """The complete HTML page.

    Raises:
        ConfigError: a result belongs to none of the runs. DataError: a folder of ``extras`` cannot be used.
    """
    title = views[0].name if len(views) == 1 else f"{len(views)} runs"
    of_run = result.by_run(views, extras.results)
    return render(
        "report.html",
        title=title,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        names=[view.name for view in views],
        **summary.content(views, of_run, extras.price),
        **result.content(views, of_run, extras.duplicates, extras.export, extras.price),
        **curves.content(views),
        **goodput.content(views, extras.price),
        **origin.content(views, command=command, figures=extras.figures),
    )
