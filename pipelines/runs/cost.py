"""Hours, device-hours and throughput of a run, from its lines of training."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def training_hours(lines: Sequence[Mapping[str, Any]]) -> float:
    """Hours of the steps between the lines; steps that were repeated after a crash count once."""
    return sum(seconds for _, seconds in _timed(lines)) / 3600


def device_hours(lines: Sequence[Mapping[str, Any]], launches: Sequence[Mapping[str, Any]]) -> float | None:
    """The same, each step times the ranks of the start that wrote its line; None if a start does not record them."""
    if not launches or any("world_size" not in launch for launch in launches):
        return None
    total = 0.0
    for line, seconds in _timed(lines):
        before = [launch for launch in launches if float(launch["time"]) <= float(line.get("time", 0))]
        total += seconds * int((before or launches)[-1 if before else 0]["world_size"])
    return total / 3600


def _timed(lines: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Each line with the seconds of the steps since the one before."""
    before = 0
    for line in lines:
        if "step_s" in line:
            yield line, float(line["step_s"]) * (int(line["step"]) - before)
        before = int(line["step"])


def throughput(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Images per second of the job, the median of the lines; None if none has it."""
    rates = [float(line["images_per_s"]) for line in lines if isinstance(line.get("images_per_s"), int | float)]
    return statistics.median(rates) if rates else None
