"""From a run's record to curves, incidents and totals.

The lines of metrics.jsonl are the only source; a part that is missing is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.pages.charts import Curve
from pipelines.report.events import Incident, incidents, launches_of
from pipelines.runs.cost import device_hours, training_hours
from pipelines.runs.run_record import RunRecord
from pretrain.config.changes import flatten
from pretrain.config.loader import DEFAULT
from pretrain.telemetry.metrics import find_metric

# The order of the curves; metrics without a line are left out.
CURVES = (
    "loss",
    "lr",
    "grad_norm",
    "weight_norm",
    "images_per_s",
    "images_per_s_per_device",
    "mfu",
    "data_wait",
    "memory_gib",
    "step_s",
    "slowest_rank_ratio",
    "skipped_updates",
    "bad_samples",
)
TITLES = {
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "weight_norm": "norm of the weights",
    "images_per_s": "throughput",
    "images_per_s_per_device": "throughput of one device",
    "mfu": "MFU",
    "data_wait": "waiting for data",
    "memory_gib": "memory of the largest rank",
    "step_s": "time of a step",
    "slowest_rank_ratio": "slowest rank over the median",
    "skipped_updates": "skipped updates",
    "bad_samples": "bad samples",
}
LINEAR = frozenset({"lr"})  # falls to 0 at the end, which should not set the range of the axis
SHARE = "share, 0-1"
NOT_DRAWN = frozenset({"num_samples", "num_classes", "seconds", "kind", "step", "time"})
MAX_POINTS = 800


@dataclass(frozen=True)
class RunView:
    """The data of one run that a report shows.

    Attributes:
        name: for legends.
        record: the run folder as it was read.
        curves: metric → its training curve.
        evaluations: ``set/metric`` → its curve.
        incidents: what is marked on the curves.
        settings: dotted key → value, from the resolved config.
        written: dotted key → (value, where it was written), for what is not a default.
        environment: environment.json.
        hours: of training, as far as the lines record them.
        launches: every start, with its command and machine.
        device_hours: the hours of each step times its number of ranks; None if that is not known.
    """

    name: str
    record: RunRecord
    curves: dict[str, Curve]
    evaluations: dict[str, Curve]
    incidents: list[Incident]
    settings: dict[str, Any] = field(default_factory=dict)
    written: dict[str, tuple[Any, str]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    hours: float = 0.0
    device_hours: float | None = None
    launches: list[dict[str, Any]] = field(default_factory=list)


def view(record: RunRecord, name: str, environment: Mapping[str, Any]) -> RunView:
    """The run as a report shows it."""
    train, evaluations, launches = record.train, record.evaluations, launches_of(record, environment)
    settings = dict(flatten(record.settings))
    provenance = environment.get("provenance", {})
    written = {key: (settings[key], place) for key, place in provenance.items() if place != DEFAULT and key in settings}
    return RunView(
        name=name,
        record=record,
        curves=_curves(train),
        evaluations={key: _curve(evaluations, key) for key in _evaluated(evaluations)},
        incidents=incidents(record),
        settings=settings,
        written=written,
        environment=dict(environment),
        hours=training_hours(train),
        device_hours=device_hours(train, launches),
        launches=launches,
    )


def _curves(train: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The metrics in the training lines that get a chart."""
    found = {key: curve for key in CURVES if (curve := _curve(train, key)).steps and not _is_quiet(key, curve)}
    if found.get("images_per_s_per_device") == found.get("images_per_s"):  # one device
        found.pop("images_per_s_per_device", None)
    if "slowest_rank_ratio" in found and set(found["slowest_rank_ratio"].values) == {1.0}:  # one rank
        del found["slowest_rank_ratio"]
    return found


def _is_quiet(key: str, curve: Curve) -> bool:
    """Whether this is a count of problems that stayed at 0."""
    return key in ("skipped_updates", "bad_samples") and not any(curve.values)


def _evaluated(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for line in lines for key in line)
    shown = (key for key in keys if key.rsplit("/", 1)[-1] not in NOT_DRAWN and not key.endswith("_std"))
    return [key for key in shown if _curve(lines, key).steps]


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> Curve:
    points = [
        (int(line["step"]), float(line[key]))
        for line in lines
        if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])
    ]
    scale = 100.0 if unit_of(key) == "%" else 1.0
    points = thinned([(step, scale * value) for step, value in points])
    return Curve([step for step, _ in points], [value for _, value in points])


def thinned(points: list[tuple[int, float]], most: int = MAX_POINTS) -> list[tuple[int, float]]:
    """At most ``most`` points: both ends, and the minimum and maximum of each interval, so that no spike is lost."""
    if len(points) <= most:
        return points
    stretch = math.ceil(2 * len(points) / (most - 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)


def title_of(key: str) -> str:
    """The title of a metric's chart."""
    return TITLES.get(key, key)


def unit_of(key: str) -> str:
    """The unit of a metric as it is drawn, empty for plain numbers; shares are drawn in %."""
    metric = find_metric(key)
    return "" if metric is None or metric.unit == "1" else "%" if metric.unit == SHARE else metric.unit


def meaning_of(key: str) -> str:
    """A metric's description."""
    metric = find_metric(key)
    return "" if metric is None else metric.meaning


def is_few_shot(key: str) -> bool:
    """Whether an evaluation is few-shot or k-NN: on frozen features."""
    name = key.rsplit("/", 1)[-1]
    return name.endswith("_shot") or name.startswith("knn")


def different_settings(views: Sequence[RunView]) -> dict[str, list[Any]]:
    """Dotted key → each run's value, for the settings in which runs differ."""
    keys = dict.fromkeys(key for shown in views for key in shown.settings)
    rows = {key: [shown.settings.get(key, "–") for shown in views] for key in keys}
    return {key: values for key, values in rows.items() if key != "name" and any(each != values[0] for each in values)}


def transfers(views: Sequence[RunView]) -> list[tuple[RunView, str]]:
    """Runs that started from weights of another, with the other's path."""
    return [(shown, str(shown.settings["init.from"])) for shown in views if shown.settings.get("init.from")]


def short_names(paths: Sequence[Path]) -> list[str]:
    """A name for each run folder; with its parent where two are alike."""
    names = [path.resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.resolve().parent.name}/{name}"
        for path, name in zip(paths, names, strict=True)
    ]
