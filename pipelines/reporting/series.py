"""From a run's record to curves, incidents and totals.

The lines of metrics.jsonl are the only source; a part that is missing is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.run_record import Incident, RunRecord
from pretrain.config.changes import flatten
from pretrain.config.loader import DEFAULT
from pretrain.telemetry.metrics import find_metric

# Curves in this order; what no line has is left out.
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
NOT_DRAWN = frozenset({"num_samples", "seconds", "kind", "step", "time"})
MAX_POINTS = 800
QUIET_KINDS = frozenset({"train", "eval", "save"})


@dataclass(frozen=True)
class Curve:
    """One number of one run over the steps."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunView:
    """What a report shows of a run.

    Attributes:
        name: for legends.
        record: the run folder as it was read.
        curves: metric → its training curve.
        evaluations: ``set/metric`` → its curve.
        incidents: what is marked on the curves.
        settings: dotted key → value, from the resolved config.
        written: dotted key → (value, where it was written), for what is not a default.
        environment: environment.json.
        hours: of training, as far as lines say.
        devices: ranks of the last start.
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
    devices: int | None = None


def view(record: RunRecord, name: str, environment: Mapping[str, Any]) -> RunView:
    """The run as a report shows it."""
    train, evaluations = record.train, record.evaluations
    settings = {} if record.resolved is None else dict(flatten(record.resolved.to_dict()))
    provenance = environment.get("provenance", {})
    written = {key: (settings[key], place) for key, place in provenance.items() if place != DEFAULT and key in settings}
    return RunView(
        name=name,
        record=record,
        curves={key: curve for key in CURVES if (curve := _curve(train, key)).steps and not _is_quiet(key, curve)},
        evaluations={key: _curve(evaluations, key) for key in _evaluated(evaluations)},
        incidents=incidents(record),
        settings=settings,
        written=written,
        environment=dict(environment),
        hours=training_hours(train),
        devices=environment.get("world_size"),
    )


def _is_quiet(key: str, curve: Curve) -> bool:
    """Counts of what should not happen, and did not."""
    return key in ("skipped_updates", "bad_samples") and not any(curve.values)


def incidents(record: RunRecord) -> list[Incident]:
    """What the record tells, and every other event of the metrics (a change, a fork, a rollback) by its kind."""
    found = list(record.incidents())
    known = {incident.kind for incident in found} | QUIET_KINDS | {"resume"}
    for kind, lines in record.lines.items():
        if kind not in known:
            for step, line in lines.items():
                found.append(Incident(float(line.get("time", 0)), step, kind, _told(kind, line)))
    return sorted(found, key=lambda incident: incident.time)


def _told(kind: str, line: Mapping[str, Any]) -> str:
    details = ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("kind", "step", "time"))
    return f"{kind} at step {line['step']}" + (f": {details}" if details else "")


def training_hours(lines: Sequence[Mapping[str, Any]]) -> float:
    """Hours of the steps between the lines; what was lost by a crash and done again counts once."""
    seconds, before = 0.0, 0
    for line in lines:
        if "step_s" in line:
            seconds += float(line["step_s"]) * (int(line["step"]) - before)
        before = int(line["step"])
    return seconds / 3600


def _evaluated(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key for key in keys if key.rsplit("/", 1)[-1] not in NOT_DRAWN and _curve(lines, key).steps]


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> Curve:
    points = [
        (int(line["step"]), float(line[key]))
        for line in lines
        if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])
    ]
    points = thinned(points)
    return Curve([step for step, _ in points], [value for _, value in points])


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``MAX_POINTS``: of each stretch the lowest and the highest, so that no spike is lost; and both ends."""
    if len(points) <= MAX_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / (MAX_POINTS - 2))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)


def unit_of(key: str) -> str:
    """The unit of a metric, empty for plain numbers."""
    metric = find_metric(key)
    return "" if metric is None or metric.unit == "1" else metric.unit


def meaning_of(key: str) -> str:
    """What a metric is, in words."""
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
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


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
