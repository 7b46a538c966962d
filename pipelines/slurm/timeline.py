"""The seconds from a failure to the next step, divided into parts, from what a run records."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pipelines.slurm.starts import End, Start

# Phase of the first rank → the part of the time that ends when it begins.
_PARTS = {
    "process": "step started",
    "import": "Python and config",
    "join": "imports",
    "choose": "process group",
    "start": "checkpoint chosen",
    "load": "model built",
    "data": "load",
}
_FROM_THE_SEED = {**_PARTS, "data": "model built"}


def parts(end: End, start: Start, first_step: Mapping[str, Any]) -> dict[str, float]:
    """The parts in order, in seconds; they add up to the time from the failure to the end of the first step.

    Args:
        end: of the step that failed.
        start: of the one after it.
        first_step: the event of that name in the run's history, of the second start.
    """
    assert end.failure is not None
    moments = [
        ("", end.failure.failed_at),
        ("detected", end.failure.detected_at),
        ("survivors stopped", end.time),
        ("decided", start.time),
    ]
    began = first_step["began"]
    names = _PARTS if "load" in began else _FROM_THE_SEED
    moments += [(name, float(began[phase])) for phase, name in names.items() if phase in began]
    moments.append(("first step", float(first_step["time"])))
    return {name: round(after - before, 3) for (_, before), (name, after) in pairwise(moments)}


def in_words(found: Mapping[str, float]) -> str:
    """``6.2 s from the failure to the next step: detected 0.1, …``."""
    listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.items())
    return f"{sum(found.values()):.1f} s from the failure to the next step: {listed}"
