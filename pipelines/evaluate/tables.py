"""Tables of an evaluation as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pretrain.names import printable


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Lines of a CSV file; None is an empty cell."""
    text = io.StringIO()
    cells = (["" if cell is None else printable(cell) for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()
