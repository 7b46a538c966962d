"""Tables of an evaluation as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Lines of a CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
