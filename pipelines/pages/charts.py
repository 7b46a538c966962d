"""Charts of metrics over the steps: the data that the script of a page draws with uPlot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUM_COLOURS = 8
LOG_RANGE = 200.0  # largest over smallest value above which the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """One metric of one run over the steps."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Mark:
    """A vertical line at a step in every chart, with a text that is shown near the pointer."""

    step: int
    kind: str
    text: str
    run: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of one metric, with a line for each run.

    Attributes:
        title: the metric.
        curves: run → its curve, the same runs in every chart of a page; at least one has a point.
        unit: of the values; a percentage axis ends at 100.
        about: description of the metric.
        last_step: the x axis ends here or later, so that all charts of a page share it.
        may_be_logarithmic: use a logarithmic y axis if the values span more than ``LOG_RANGE``.
    """

    title: str
    curves: Mapping[str, Curve]
    unit: str = ""
    about: str = ""
    last_step: int = 0
    may_be_logarithmic: bool = True

    @property
    def is_logarithmic(self) -> bool:
        """Whether the y axis is logarithmic."""
        values = [value for curve in self.curves.values() for value in curve.values]
        return self.may_be_logarithmic and min(values) > 0 and max(values) / min(values) > LOG_RANGE

    @property
    def notes(self) -> str:
        """The words beside the title."""
        return ", ".join(filter(None, (self.unit, "logarithmic" if self.is_logarithmic else "")))

    @property
    def data(self) -> dict[str, Any]:
        """The object that the script reads."""
        return {
            "log": self.is_logarithmic,
            "percent": self.unit == "%",
            "last": max(self.last_step, 1),
            "curves": [
                {
                    "name": name,
                    "colour": index % NUM_COLOURS,
                    "dashed": index % (2 * NUM_COLOURS) >= NUM_COLOURS,
                    "steps": curve.steps,
                    "values": [float(f"{value:.6g}") for value in curve.values],
                }
                for index, (name, curve) in enumerate(self.curves.items())
            ],
        }
