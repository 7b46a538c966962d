"""Small pieces of HTML that every section of a report is made of."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import Any

from pretrain.redaction import redacted


def text(value: Any) -> str:
    """A value as text without secrets, which no markup can come of."""
    words = {None: "null", True: "true", False: "false"}  # as they stand in a config
    return html.escape(words[value] if value is None or isinstance(value, bool) else redacted(str(value)))


def table(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Rows of cells that are HTML already; nothing where there is no row."""
    if not rows:
        return ""
    head = "<tr>" + "".join(f"<th>{cell}</th>" for cell in heads) + "</tr>" if heads else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{head}{body}</table></div>'


def when(seconds: float) -> str:
    """A point in time, empty for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""
