"""The confusion matrix of a result: a row for each class, a column for each prediction."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pipelines.weights.results import Result

MOST_CLASSES = 20


class Cell(NamedTuple):
    """``share`` is of the images of the row's class, including those whose prediction is not shown."""

    count: int
    share: float
    is_hit: bool


class Matrix(NamedTuple):
    """The classes with the most mistakes, in the order of the set."""

    names: list[str]
    rows: list[tuple[str, list[Cell]]]
    num_left_out: int


def matrix_of(result: Result) -> Matrix | None:
    """At most ``MOST_CLASSES`` rows and columns; None if the images have several labels, or there are no classes."""
    if not result.predictions or not result.classes or any("; " in one.truth for one in result.predictions):
        return None
    counts = Counter((one.truth, one.predicted) for one in result.predictions)
    every = [row.name for row in result.classes]
    wrong: Counter[str] = Counter()
    for (truth, predicted), count in counts.items():
        if truth != predicted:
            wrong[truth] += count
            wrong[predicted] += count
    chosen = set(sorted(every, key=lambda name: -wrong[name])[:MOST_CLASSES])
    names = [name for name in every if name in chosen]
    totals = Counter(one.truth for one in result.predictions)
    rows = [
        (row, [Cell(counts[row, column], _share(counts[row, column], totals[row]), row == column) for column in names])
        for row in names
    ]
    return Matrix(names, rows, len(every) - len(names))


def _share(count: int, total: int) -> float:
    return round(count / total, 3) if total else 0.0
