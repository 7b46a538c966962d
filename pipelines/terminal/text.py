"""Values as text: readable durations and counts, CSV and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from pretrain.names import printable, printable_in


def duration(seconds: float) -> str:
    """A duration in its two largest units; tenths of a second below ten."""
    rounded = round(seconds)
    days, hours, minutes = rounded // 86400, rounded // 3600 % 24, rounded // 60 % 60
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rounded % 60} s"
    return f"{rounded} s" if seconds >= 10 or seconds == rounded else f"{seconds:.1f} s"


def counted(number: int, unit: str) -> str:
    """``1 run``, ``2 runs``; ``unit`` is the singular of a regular noun."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """The lines of a CSV file; None is an empty cell."""
    text = io.StringIO()
    cells = (["" if cell is None else printable(cell) for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def as_json(content: dict[str, object]) -> str:
    """One line of a JSONL file."""
    return json.dumps(printable_in(content), ensure_ascii=False)
