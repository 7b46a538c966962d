"""A line chart as inline SVG, coloured by the page's style sheet and readable without the script."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.report.events import Incident
from pipelines.report.series import Curve

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 34
NUM_COLOURS = 8
FEW_POINTS = 20  # a curve with at most so many points has a dot at each
LOG_RANGE = 200.0  # largest over smallest value above which the axis is logarithmic


@dataclass(frozen=True)
class Chart:
    """A chart of one metric, with a line for each run.

    Attributes:
        title: the metric.
        curves: run → its curve; at least one has a point.
        incidents: vertical marks, with what happened as their tooltip.
        unit: of the values; a percentage axis ends at 100.
        about: description of the metric.
        last_step: the x axis ends here or later, so that all charts of a report share it.
        may_be_logarithmic: use a logarithmic y axis if the values span more than ``LOG_RANGE``.
    """

    title: str
    curves: Mapping[str, Curve]
    incidents: Sequence[Incident] = ()
    unit: str = ""
    about: str = ""
    last_step: int = 0
    may_be_logarithmic: bool = True

    def to_html(self) -> str:
        """A ``figure`` with the chart, and its values for the script that shows them under the pointer."""
        drawn = {name: curve for name, curve in self.curves.items() if curve.steps}
        x, y = self._axes(list(drawn.values()))
        marks = [_mark(incident, x) for incident in self.incidents if x.low <= incident.step <= x.high]
        colours = {name: index % NUM_COLOURS for index, name in enumerate(self.curves)}
        lines = [_line(curve, x, y, colours[name]) for name, curve in drawn.items()]
        notes = ", ".join(filter(None, (self.unit, "logarithmic" if y.logarithmic else "")))
        caption = html.escape(self.title) + (f" <small>{html.escape(notes)}</small>" if notes else "")
        about, label = (html.escape(words, quote=True) for words in (self.about, f"{self.title} over the steps"))
        return (
            f'<figure class="chart" data-chart="{_data(drawn, x)}"><figcaption title="{about}">{caption}'
            f'<output></output></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
            + "".join([_grid(x, y), *marks, *lines])
            + f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}">step</text>'
            + '<line class="cursor" y1="12" y2="216" x1="-9" x2="-9"/></svg></figure>'
        )

    def _axes(self, drawn: Sequence[Curve]) -> tuple[Axis, Axis]:
        steps = [step for curve in drawn for step in curve.steps]
        values = [value for curve in drawn for value in curve.values]
        x = Axis(0.0, float(max(*steps, self.last_step, 1)), LEFT, WIDTH - RIGHT)
        logarithmic = self.may_be_logarithmic and min(values) > 0 and max(values) / min(values) > LOG_RANGE
        most = 100.0 if self.unit == "%" and max(values) <= 100 else math.inf
        return x, Axis.around(values, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic, most=most)


@dataclass(frozen=True)
class Axis:
    """Numbers → pixels.

    Attributes:
        low, high: the range of the axis; of a logarithmic one, the logarithms to base 10.
        start, end: pixels of its two ends.
        logarithmic: powers of ten are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, *, logarithmic: bool = False, most: float = math.inf
    ) -> Axis:
        """An axis with some margin beyond the smallest and the largest value, but not above ``most``."""
        low, high = min(values), max(values)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        if low == high:
            low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
        room = 0.05 * (high - low)
        low -= room
        return cls(low, min(high + room, max(most, low + 2 * room)), start, end, logarithmic)

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        position = math.log10(value) if self.logarithmic else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers inside the range; powers of ten on a logarithmic axis."""
        if self.logarithmic:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [10.0**power for power in powers] or [10.0**self.low, 10.0**self.high]
        rough = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def _data(drawn: Mapping[str, Curve], x: Axis) -> str:
    """The values as an attribute for the script in ``markup``."""
    curves = [
        {"name": name, "steps": curve.steps, "values": [float(f"{value:.6g}") for value in curve.values]}
        for name, curve in drawn.items()
    ]
    return html.escape(json.dumps({"x": [x.low, x.high, LEFT, WIDTH - RIGHT], "curves": curves}), quote=True)


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for value in y.ticks():
        pixel = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{pixel:.1f}" y2="{pixel:.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{pixel + 4:.1f}">{number(value)}</text>')
    for value in x.ticks():
        pixel = x(value)
        parts.append(f'<text class="x" x="{pixel:.1f}" y="{HEIGHT - BOTTOM + 18}">{number(value)}</text>')
    return "".join(parts)


def _line(curve: Curve, x: Axis, y: Axis, colour: int) -> str:
    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(curve.steps, curve.values, strict=True))
    if len(curve.steps) == 1:
        place = points.split(",")
        return f'<circle class="c{colour}" cx="{place[0]}" cy="{place[1]}" r="3"/>'
    dots = "".join(
        f'<circle class="c{colour} dot" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2"/>'
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    return f'<polyline class="c{colour}" points="{points}"/>' + (dots if len(curve.steps) <= FEW_POINTS else "")


def _mark(incident: Incident, x: Axis) -> str:
    pixel = x(incident.step)
    text = html.escape(f"step {incident.step}: {incident.text}")
    return (
        f'<g class="mark {html.escape(incident.kind, quote=True)}"><title>{text}</title>'
        f'<line x1="{pixel:.1f}" x2="{pixel:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></g>'
    )


def number(value: float) -> str:
    """A number in a short, readable form."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.4g}"
