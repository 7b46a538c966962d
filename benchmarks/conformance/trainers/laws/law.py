"""A law, and what the programs of several laws share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.trainers.outcomes import SILENT_END, Outcome
from benchmarks.conformance.trainers.system import System

ROUNDING = 1e-5  # relative difference of a loss
REPORTS = re.compile(
    r"corrupt|damag|incomplete|truncat|checksum|mismatch|hash|fall(?:ing)? back|not intact|invalid", re.I
)


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


def after_a_failed_save(full: Outcome, resumed: Outcome) -> Cell:
    """The cell of a resume from a folder in which the save of step 8 failed, and that of step 4 is complete."""
    if resumed.problem:
        verdict = "fails" if resumed.problem == SILENT_END else "partly"
        return Cell(verdict, f"the next start stops: {resumed.problem}")
    if resumed.start == 1:
        said = resumed.reports(REPORTS, full)
        seen = "begins at step 1" + (" and reports why" if said else " without a word")
        return Cell("partly" if said else "fails", f"the next start {seen}")
    if resumed.difference(full) > ROUNDING:
        return Cell("fails", f"the next start continues at step {resumed.start} with {differing(full, resumed)}")
    return Cell("holds", f"the next start continues at step {resumed.start} with {differing(full, resumed)}")


def differing(full: Outcome, resumed: Outcome) -> str:
    """How the losses compare, in words."""
    if resumed.is_same(full):
        return "the losses of the uninterrupted run, bit for bit"
    return f"losses that differ from those of the uninterrupted run by up to {resumed.difference(full):.1e}"
