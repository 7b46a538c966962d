"""Measures every law on every system, and writes docs/conformance.md and results.json.

    make bench-setup                                                   # once: environments for the peers, in .bench/
    python -m benchmarks.conformance                                   # everything: about an hour on two cores
    python -m benchmarks.conformance --systems ours grain --laws resume seek
    python -m benchmarks.conformance --kinds trainers

A run that measures some cells keeps the others with their date. Sets, states and logs are in a temporary folder, or in
--work. Every run of a loader has a limit of CPU seconds, and one that hangs costs one cell.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.kinds import KINDS, Kind
from benchmarks.conformance.loaders.system import NotInstalledError, TooSlowError
from benchmarks.conformance.results import keep
from pipelines.terminal.arguments import program_parser


def measure(kind: Kind, system: Any, law: str) -> Cell:
    """One cell; a failure of the suite or of a conversion is a cell too."""
    if law in system.facts["not_offered"]:
        return Cell("not offered", system.facts["not_offered"][law])
    try:
        return kind.laws[law].measure(system)
    except (RuntimeError, OSError, subprocess.SubprocessError, TooSlowError) as error:
        return Cell("not measured", f"{type(error).__name__}: {error}"[-600:])


def run(options: argparse.Namespace, work: Path) -> None:
    """Measures the chosen cells; each is kept as soon as it is known."""
    for key in options.kinds:
        for name in (name for name in KINDS[key].systems if name in options.systems):
            try:
                system = KINDS[key].open(name, work, *options.limit)
            except NotInstalledError as error:
                print(error, flush=True)
                continue
            with contextlib.closing(system):
                run_laws(key, system, options.laws)


def run_laws(key: str, system: Any, laws: Sequence[str]) -> None:
    """Measures the chosen laws of one system."""
    for law in (law for law in KINDS[key].laws if law in laws):
        began, used = time.monotonic(), getattr(system, "cpu_s", None)  # trainers do not count it
        cell = measure(KINDS[key], system, law)
        seconds = time.monotonic() - began
        cost = {"seconds": seconds, "load_average": os.getloadavg()[0]}
        if used is not None:
            cost["cpu_seconds"] = system.cpu_s - used
        keep((key, system.name, law), system.facts, cell, cost)
        print(f"{system.name:<14}{law:<16}{cell.verdict:<14}{seconds:5.0f} s  {cell.seen}", flush=True)


def main() -> int:
    """Runs the command line."""
    parser = program_parser("python -m benchmarks.conformance", __doc__)
    systems = list(dict.fromkeys(name for kind in KINDS.values() for name in kind.systems))
    laws = list(dict.fromkeys(name for kind in KINDS.values() for name in kind.laws))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--laws", nargs="+", choices=laws, default=laws)
    parser.add_argument(
        "--limit", type=float, nargs=1, default=(), help="seconds that one run may take; of a loader: CPU seconds"
    )
    parser.add_argument("--work", type=Path, help="folder that is kept, for looking at logs")
    options = parser.parse_args()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        run(options, options.work.resolve())
        return 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as work:
        run(options, Path(work))
    return 0


if __name__ == "__main__":
    sys.exit(main())
