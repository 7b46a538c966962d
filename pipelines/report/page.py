"""The sections of a report, each a piece of HTML, or empty if there is nothing to show."""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.report import markup, series, starts
from pipelines.report.chart import NUM_COLOURS, Chart, number
from pipelines.report.markup import table, text, when
from pipelines.report.series import RunView
from pipelines.runs.run_record import CONFIG
from pipelines.terminal.text import duration
from pipelines.weights.published import published_for
from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.errors import DataError
from pretrain.models import budget

PICTURES = (".png",)
MOST_COLUMNS = 3


def page(views: Sequence[RunView], *, pictures: Path | None, price: float | None, command: Sequence[str]) -> str:
    """The complete HTML page."""
    title = views[0].name if len(views) == 1 else f"{len(views)} runs"
    sections = [
        _head(views, title),
        _summary(views, price),
        _charts("Training", views, lambda view: view.curves),
        _charts("Evaluation", views, lambda view: _part(view, few_shot=False)),
        _charts("Few-shot and k-NN", views, lambda view: _part(view, few_shot=True)),
        _incidents(views),
        _transfer(views),
        _differences(views) if len(views) > 1 else _written(views[0]),
        _pictures(pictures),
        *(_card(view) for view in _one_per_set(views)),
        starts.environments(views),
        starts.commands(views, command),
        *(_config(view) for view in views),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # otherwise a browser requests one
        f"<title>{text(title)}</title><style>{markup.STYLE}</style></head><body>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<script>{markup.SCRIPT}</script></body></html>\n"
    )


def _head(views: Sequence[RunView], title: str) -> str:
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"<h1>{text(title)}</h1>", f'<p class="dim">Report of {written}</p>']
    if len(views) > 1:
        keys = "".join(
            f'<span class="name"><span class="key c{index % NUM_COLOURS}"></span>{text(view.name)}</span> '
            for index, view in enumerate(views)
        )
        lines.append(f"<p>{keys}</p>")
    return "".join(lines)


def _summary(views: Sequence[RunView], price: float | None) -> str:
    rows: dict[str, list[str]] = {}
    for index, view in enumerate(views):
        for name, value in _facts(view, price):
            rows.setdefault(name, [""] * len(views))[index] = value
    heads = [""] + [text(view.name) for view in views] if len(views) > 1 else []
    body = [[text(name), *values] for name, values in rows.items()]
    if len(views) > MOST_COLUMNS:  # a row for each run is easier to read then
        heads, *body = [list(cells) for cells in zip(heads, *body, strict=True)]
    return f'<div class="{"facts" if len(views) == 1 else "all"}">{table(body, heads)}</div>'


def _facts(view: RunView, price: float | None) -> Iterator[tuple[str, str]]:
    record = view.record
    yield "state", f'<span class="state">{text(record.state)}</span>'
    total = f" of {record.num_steps:,}" if record.num_steps else ""
    yield "step", f"{record.step:,}{total}"
    if record.num_restarts:
        yield "restarts", str(record.num_restarts)
    if record.last_error:
        yield "last error", text(record.last_error)
    experiment = record.resolved.experiment if record.resolved else None
    if experiment is None:
        yield "config", text(record.config_problem or "not written")
    if experiment is not None:
        yield "model", text(experiment.model.label)
        if not experiment.model.family.packages:
            yield "parameters", f"{budget.num_parameters(experiment.model, experiment.num_outputs):,}"
            images = record.step * experiment.global_batch_size
            flops = budget.training_flops(experiment.model, experiment.num_outputs, images)
            yield "training FLOPs", f"{flops:.4g}"
    if "loss" in view.curves:
        yield "last loss", number(view.curves["loss"].values[-1])
    for key, curve in view.evaluations.items():
        if key.rsplit("/", 1)[-1] in ("top1", "mAP", "precision_at_1"):
            best = max(curve.values)
            yield key, f"{curve.values[-1]:.2f} %" + (f" (best {best:.2f} %)" if best > curve.values[-1] else "")
    if "images_per_s" in view.curves:
        yield "images/s, median", number(statistics.median(view.curves["images_per_s"].values))
    if "mfu" in view.curves:
        yield "MFU, median", f"{statistics.median(view.curves['mfu'].values):.1f} %"
    if view.hours:
        yield "training steps took", duration(3600 * view.hours)
        if view.device_hours is not None:
            ranks = sorted({int(launch["world_size"]) for launch in view.launches})
            yield (
                "device-hours",
                f"{view.device_hours:.3g} on {' and '.join(map(str, ranks))} rank{'s' * (ranks != [1])}",
            )
            if price is not None:
                yield "cost", f"{view.device_hours * price:,.2f} at {price:g} per device-hour"


def _part(view: RunView, *, few_shot: bool) -> dict[str, series.Curve]:
    return {key: curve for key, curve in view.evaluations.items() if series.is_few_shot(key) == few_shot}


def _charts(title: str, views: Sequence[RunView], curves_of: Any) -> str:
    keys = list(dict.fromkeys(key for view in views for key in curves_of(view)))
    if title == "Training":
        keys.sort(key=series.CURVES.index)
    if not keys:
        none = "<p>There is no line of training yet.</p>"
        return f"<h2>{title}</h2>{none}" if title == "Training" else ""
    marks = [incident for view in views for incident in view.incidents]
    last = max(view.record.step for view in views)
    charts = [
        Chart(
            series.title_of(key),
            {view.name: curves_of(view).get(key, series.Curve([], [])) for view in views},
            marks,
            unit=series.unit_of(key),
            about=series.meaning_of(key),
            last_step=last,
            may_be_logarithmic=key not in series.LINEAR,
        ).to_html()
        for key in keys
    ]
    legend = "" if not marks else '<p class="dim">Dashed: restarts, changes and incidents, listed below.</p>'
    return f'<h2>{title}</h2>{legend if title == "Training" else ""}<div class="charts">{"".join(charts)}</div>'


def _incidents(views: Sequence[RunView]) -> str:
    rows = [
        [text(view.name), f"{incident.step:,}", when(incident.time), text(incident.kind), text(incident.text)]
        for view in views
        for incident in view.incidents
    ]
    return "<h2>Restarts, changes and incidents</h2>" + table(rows, ["run", "step", "time", "kind", ""]) if rows else ""


def _transfer(views: Sequence[RunView]) -> str:
    """Runs from given weights next to the paper's results, with the mean over runs that differ only in the seed."""
    groups: dict[tuple[str, str], list[RunView]] = {}
    for view, source in series.transfers(views):
        settings = {k: v for k, v in view.settings.items() if k not in ("seed", "name", "output_dir")}
        groups.setdefault((source, json.dumps(settings, sort_keys=True, default=str)), []).append(view)
    rows = []
    for (source, _), runs in groups.items():
        keys = [key for key in runs[0].evaluations if key.endswith("/top1")]
        for key in keys:
            scores = [run.evaluations[key].values[-1] for run in runs if key in run.evaluations]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            rows.append(
                [
                    text(", ".join(run.name for run in runs)),
                    text(source),
                    text(key),
                    f"{statistics.mean(scores):.2f}{spread}",
                    str(len(scores)),
                    published_for(runs[0].settings, source) or "–",
                ]
            )
    heads = ["runs", "from", "measured", "top-1 in %", "runs counted", "the paper's"]
    return "<h2>Transfer</h2>" + table(rows, heads) if rows else ""


def _written(view: RunView) -> str:
    rows = [[f"<code>{text(key)}</code>", text(value), text(place)] for key, (value, place) in view.written.items()]
    note = '<p class="dim">Settings that were written somewhere, and where; all others have their defaults.</p>'
    return "<h2>Settings</h2>" + note + table(rows, ["key", "value", "written in"]) if rows else ""


def _differences(views: Sequence[RunView]) -> str:
    rows = [
        [f"<code>{text(key)}</code>", *(text(value) for value in values)]
        for key, values in series.different_settings(views).items()
    ]
    heads = ["key", *(text(view.name) for view in views)]
    return "<h2>Settings that differ</h2>" + table(rows, heads) if rows else ""


def _pictures(folder: Path | None) -> str:
    if folder is None:
        return ""
    shown = []
    for file in sorted(path for path in folder.iterdir() if path.suffix in PICTURES):
        content = base64.b64encode(file.read_bytes()).decode()
        name = text(file.stem.replace("_", " "))
        shown.append(
            f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/png;base64,{content}"></figure>'
        )
    return f"<h2>Figures</h2>{''.join(shown)}"


def _one_per_set(views: Sequence[RunView]) -> list[RunView]:
    return list({view.settings.get("data.shards"): view for view in reversed(views)}.values())[::-1]


def _card(view: RunView) -> str:
    folder = view.settings.get("data.shards")
    if not folder or not (Path(folder) / CARD_FILE).is_file():
        return ""
    try:
        card = Card.load(folder)
    except DataError as error:
        return f"<h2>Data: {text(folder)}</h2><p>{text(error)}</p>"
    return f"<h2>Data: {text(folder)}</h2>" + table([[text(name), text(value)] for name, value in card.facts()])


def _config(view: RunView) -> str:
    try:
        content = (view.record.path / CONFIG).read_text(errors="replace")
    except OSError:
        return ""
    return f"<details><summary>Complete config of {text(view.name)}</summary><pre>{text(content)}</pre></details>"
