"""The charts of a page, the incidents that are marked on them, and transfers beside the paper's results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.pages.charts import Chart, Curve, Mark
from pipelines.pages.templates import when
from pipelines.report import series
from pipelines.report.series import RunView
from pipelines.weights.transfer import published_for

POINTS_OF_CHART, LEAST_POINTS = 4_000, 60  # of all runs; of one run, however many there are


def content(views: Sequence[RunView]) -> dict[str, Any]:
    """The sections, as the template takes them."""
    training = _charts(views, lambda view: view.curves, series.CURVES)
    evaluated = _charts(views, lambda view: _part(view, few_shot=False))
    few_shot = _charts(views, lambda view: _part(view, few_shot=True))
    sections = [("Training", training), ("Evaluation", evaluated), ("Few-shot and k-NN", few_shot)]
    return {
        "charts": [
            {"title": title, "charts": charts} for title, charts in sections if charts or title == "Training"
        ],
        "marks": [vars(Mark(one.step, one.kind, one.text, view.name)) for view in views for one in view.incidents],
        "incidents": _incidents(views),
        "transfer": _transfer(views),
    }  # fmt: skip


def _part(view: RunView, *, few_shot: bool) -> dict[str, Curve]:
    return {key: curve for key, curve in view.evaluations.items() if series.is_few_shot(key) == few_shot}


def _charts(
    views: Sequence[RunView], curves_of: Callable[[RunView], Mapping[str, Curve]], order: Sequence[str] = ()
) -> list[Chart]:
    keys = list(dict.fromkeys(key for view in views for key in curves_of(view)))
    if order:
        keys.sort(key=order.index)
    most = max(LEAST_POINTS, POINTS_OF_CHART // len(views))
    last = max(view.record.step for view in views)
    return [
        Chart(
            series.title_of(key),
            {view.name: _thinned(curves_of(view).get(key, Curve([], [])), most) for view in views},
            unit=series.unit_of(key),
            about=series.meaning_of(key),
            last_step=last,
            may_be_logarithmic=key not in series.LINEAR,
        )
        for key in keys
    ]


def _thinned(curve: Curve, most: int) -> Curve:
    points = series.thinned(list(zip(curve.steps, curve.values, strict=True)), most)
    return Curve([step for step, _ in points], [value for _, value in points])


def _incidents(views: Sequence[RunView]) -> dict[str, Any]:
    found = [(view.name, incident) for view in views for incident in view.incidents]
    return {
        "rows": [[name, f"{one.step:,}", when(one.time), one.kind, one.text] for name, one in found],
        "runs": [name for name, _ in found],
    }


def _transfer(views: Sequence[RunView]) -> list[list[str]]:
    """Runs from given weights next to the paper's results, with the mean over runs that differ only in the seed."""
    groups: dict[tuple[str, str], list[RunView]] = {}
    for view, source in series.transfers(views):
        settings = {k: v for k, v in view.settings.items() if k not in ("seed", "name", "output_dir")}
        groups.setdefault((source, json.dumps(settings, sort_keys=True, default=str)), []).append(view)
    rows = []
    for (source, _), runs in groups.items():
        for key in (key for key in runs[0].evaluations if key.endswith("/top1")):
            scores = [run.evaluations[key].values[-1] for run in runs if key in run.evaluations]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            names, beside = ", ".join(run.name for run in runs), published_for(runs[0].settings, source) or "–"
            rows.append([names, source, key, f"{statistics.mean(scores):.2f}{spread}", str(len(scores)), beside])
    return rows
