"""One cell of the table: a verdict, and the evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "partly", "fails", "not offered", "not measured"]


@dataclass(frozen=True)
class Cell:
    """One cell of the table.

    Attributes:
        verdict: "not offered": the documentation does not promise it; "not measured": it could not be tried.
        seen: what was seen, in words and figures.
    """

    verdict: Verdict
    seen: str
