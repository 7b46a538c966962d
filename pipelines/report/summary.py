"""The first screen of a page: the headline of each run with its interval and baselines, and facts about the run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.pages.templates import number
from pipelines.report.series import RunView
from pipelines.runs.run_record import RunRecord
from pipelines.terminal.output import duration
from pipelines.weights.results import HEADLINES, TITLES, Result, wilson
from pretrain.data.storage.card import Card
from pretrain.errors import UserError
from pretrain.models.families.registry import num_parameters
from pretrain.sharding.work import flops_until
from pretrain.telemetry.metrics import in_units


class Headline(NamedTuple):
    """The most important figure of a run on one set."""

    run: str
    title: str
    set: str
    value: str
    interval: str
    num_images: str
    baselines: list[tuple[str, str]]


def content(views: Sequence[RunView], results: Mapping[str, Sequence[Result]], price: float | None) -> dict[str, Any]:
    """Headlines and facts, as the template takes them."""
    found = [headline for view in views for headline in headlines(view, results.get(view.name, ()), views)]
    facts = [list(_facts(view, price)) for view in views]
    heads = list(dict.fromkeys(name for one in facts for name, _ in one))
    baselines = ("; ".join(f"{name} {value}" for name, value in one.baselines) for one in found)
    return {
        "headlines": found,
        "headline_rows": [
            [one.run, one.set, one.title, one.value, one.interval, one.num_images, baseline]
            for one, baseline in zip(found, baselines, strict=True)
        ],
        "headline_runs": [one.run for one in found],
        "facts": facts,
        "fact_heads": ["run", *heads],
        "fact_rows": [
            [view.name, *(dict(one).get(name, "") for name in heads)] for view, one in zip(views, facts, strict=True)
        ],
    }


def headlines(view: RunView, results: Sequence[Result], views: Sequence[RunView]) -> list[Headline]:
    """Of each set that ``evaluate`` was run on; without any, of the last evaluation during the training."""
    found = [one for result in results for one in _of_result(view, result, views)]
    return found or list(_of_training(view, views))


def _of_result(view: RunView, result: Result, views: Sequence[RunView]) -> Iterator[Headline]:
    if result.headline is None:
        return
    metric, value = result.headline
    count = result.figures.get("num_samples")
    baselines = [] if result.constant is None else [_constant(result.constant)]
    key = next((key for key in view.evaluations if _shards_of(view, key) == result.shards), "")
    yield Headline(
        view.name,
        TITLES.get(metric, metric),
        result.shards,
        in_units(metric, value),
        str(wilson(metric, value, count) or ""),
        f"{count:,}" if isinstance(count, int) else "",
        baselines + _from_scratch(view, key, views),
    )


def _of_training(view: RunView, views: Sequence[RunView]) -> Iterator[Headline]:
    """The last evaluation of a run."""
    line = view.record.evaluations[-1] if view.record.evaluations else {}
    keys = [key for metric in HEADLINES for key in view.evaluations if key.rpartition("/")[2] == metric]
    for key in keys[:1]:
        name, _, metric = key.rpartition("/")
        value = line.get(key)
        if not isinstance(value, int | float):
            continue
        count = line.get(f"{name}/num_samples")
        baselines = _constant_of_card(_shards_of(view, key)) if metric == "top1" else []
        yield Headline(
            view.name,
            TITLES.get(metric, metric),
            f"{name} at step {line['step']:,}",
            in_units(metric, value),
            str(wilson(metric, value, count) or ""),
            f"{count:,}" if isinstance(count, int) else "",
            baselines + _from_scratch(view, key, views),
        )


def _shards_of(view: RunView, key: str) -> str:
    """The location of the set behind a metric of an evaluation; "" if the config does not give it."""
    return str(view.settings.get(f"evaluation.sets.{key.rpartition('/')[0].removesuffix('_ema')}.shards") or "")


def _constant(share: float) -> tuple[str, str]:
    return "constant-prediction baseline", f"{100 * share:.2f} %"


def _constant_of_card(shards: str) -> list[tuple[str, str]]:
    """The share of the most frequent class of a set with one label per image, as far as its card can be read."""
    try:
        card = Card.load(shards)
    except (UserError, OSError, ValueError):  # not on this machine, or not a folder
        return []
    if card.labels != "single" or not card.class_counts or not card.num_samples:
        return []
    return [_constant(max(card.class_counts) / card.num_samples)]


def _from_scratch(view: RunView, key: str, views: Sequence[RunView]) -> list[tuple[str, str]]:
    """The mean of the runs of the page that train on the same set from random weights, for a run that does not."""
    if not view.settings.get("init.from") or not key:
        return []
    values = [
        float(value)
        for other in views
        if not other.settings.get("init.from") and other.settings.get("data.shards") == view.settings.get("data.shards")
        for value in ([other.record.evaluations[-1].get(key)] if other.record.evaluations else [])
        if isinstance(value, int | float)
    ]
    if not values:
        return []
    runs = f" ({len(values)} runs)" if len(values) > 1 else ""
    return [(f"from scratch{runs}", in_units(key, statistics.mean(values)))]


def _facts(view: RunView, price: float | None) -> Iterator[tuple[str, str]]:
    record = view.record
    yield "state", record.state
    total = f" of {record.num_steps:,}" if record.num_steps else ""
    yield "step", f"{record.step:,}{total}"
    if record.num_restarts:
        yield "restarts", str(record.num_restarts)
    if record.last_error:
        yield "last error", record.last_error
    yield from _of_model(record)
    if "loss" in view.curves:
        yield "last loss", number(view.curves["loss"].values[-1])
    for key, curve in view.evaluations.items():
        if key.rpartition("/")[2] in HEADLINES[:3]:
            best = max(curve.values)
            yield key, f"{curve.values[-1]:.2f} %" + (f" (best {best:.2f} %)" if best > curve.values[-1] else "")
    if "images_per_s" in view.curves:
        yield "images/s, median", number(statistics.median(view.curves["images_per_s"].values))
    if "mfu" in view.curves:
        yield "MFU, median", f"{statistics.median(view.curves['mfu'].values):.1f} %"
    yield from _cost(view, price)


def _of_model(record: RunRecord) -> Iterator[tuple[str, str]]:
    experiment = record.resolved.experiment if record.resolved else None
    if experiment is None:
        yield "config", record.config_problem or "not written"
        return
    yield "model", experiment.model.label
    if not experiment.model.family.packages:
        yield "parameters", f"{num_parameters(experiment.model, experiment.num_outputs):,}"
        yield "training FLOPs", f"{flops_until(experiment, record.step):.4g}"


def _cost(view: RunView, price: float | None) -> Iterator[tuple[str, str]]:
    if not view.hours:
        return
    yield "training steps took", duration(3600 * view.hours)
    if view.device_hours is None:
        return
    ranks = sorted({int(launch["world_size"]) for launch in view.launches})
    yield "device-hours", f"{view.device_hours:.3g} on {' and '.join(map(str, ranks))} rank{'s' * (ranks != [1])}"
    if price is not None:
        yield "cost", f"{view.device_hours * price:,.2f} at {price:g} per device-hour"
