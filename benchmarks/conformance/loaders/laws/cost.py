"""Laws of cost: memory does not grow with the samples drawn."""

from __future__ import annotations

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.loaders.laws.law import Law, first_problem
from benchmarks.conformance.loaders.laws.order import long_run
from benchmarks.conformance.loaders.system import System

WARM = 200  # batches
GROWTH_MIB = 32


def memory(system: System) -> Cell:
    """Private memory of all processes over 50,000 samples."""
    outcome = long_run(system)
    if problem := first_problem({"1 rank": outcome}):
        return problem
    levels = outcome.ranks[0].memory_mib
    warm = next(mib for batch, mib in levels if batch >= WARM)
    batch, last = levels[-1]
    good = last - warm < GROWTH_MIB
    return Cell(
        "holds" if good else "fails",
        f"{warm:.0f} MiB after {WARM} batches, {last:.0f} MiB after {batch:,} ({last - warm:+.0f})",
    )


LAWS = {
    "memory": Law(
        "memory over 50,000 samples",
        f"Private memory of the rank and a data process grows by less than {GROWTH_MIB} MiB after the first {WARM} "
        "batches of 48.",
        memory,
    )
}
