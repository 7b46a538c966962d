"""A law, and what the programs of several laws share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.conformance.cells import Cell, Verdict
from benchmarks.conformance.loaders.outcomes import Outcome
from benchmarks.conformance.loaders.system import System


@dataclass(frozen=True)
class Law:
    """A column of the table.

    Attributes:
        title: its heading.
        about: what has to hold.
        measure: System → Cell.
    """

    title: str
    about: str
    measure: Callable[[System], Cell]


def first_problem(outcomes: dict[str, Outcome]) -> Cell | None:
    """The cell of a law whose runs did not come to their end; None: they did."""
    for name, outcome in outcomes.items():
        if outcome.problem:
            return Cell("fails", f"{name}: {outcome.problem}")
    return None


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a law that was tried in several ways."""
    order: tuple[Verdict, ...] = ("fails", "not measured", "partly", "holds")
    return next(verdict for verdict in order if verdict in verdicts)
