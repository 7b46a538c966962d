"""Measures every law on every system, and writes docs/conformance.md and results.json.

    make bench-setup                                                   # once: environments for the peers, in .bench/
    python -m benchmarks.conformance                                   # everything: about an hour on two cores
    python -m benchmarks.conformance --systems ours grain --laws resume seek

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
from pathlib import Path

from benchmarks.conformance.cells import Cell
from benchmarks.conformance.loaders import SYSTEMS
from benchmarks.conformance.loaders.laws import LAWS
from benchmarks.conformance.loaders.system import LIMIT_CPU_S, NotInstalledError, System, TooSlowError
from benchmarks.conformance.results import keep
from pipelines.terminal.arguments import program_parser


def measure(system: System, law: str) -> Cell:
    """One cell; a failure of the suite or of a conversion is a cell too."""
    if law in system.facts["not_offered"]:
        return Cell("not offered", system.facts["not_offered"][law])
    try:
        return LAWS[law].measure(system)
    except (RuntimeError, OSError, subprocess.SubprocessError, TooSlowError) as error:
        return Cell("not measured", f"{type(error).__name__}: {error}"[-600:])


def run(options: argparse.Namespace, work: Path) -> None:
    """Measures the chosen cells; each is kept as soon as it is known."""
    for name in options.systems:
        try:
            system = System(name, work, work / "tars", options.limit)
        except NotInstalledError as error:
            print(error, flush=True)
            continue
        with contextlib.closing(system):
            for law in options.laws:
                began, used = time.monotonic(), system.cpu_s
                cell = measure(system, law)
                seconds = time.monotonic() - began
                cost = {"seconds": seconds, "cpu_seconds": system.cpu_s - used, "load_average": os.getloadavg()[0]}
                keep(name, system.facts, law, cell, cost)
                print(f"{name:<14}{law:<16}{cell.verdict:<14}{seconds:5.0f} s  {cell.seen}", flush=True)


def main() -> int:
    """Runs the command line."""
    parser = program_parser("python -m benchmarks.conformance", __doc__)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--laws", nargs="+", choices=list(LAWS), default=list(LAWS))
    parser.add_argument("--limit", type=float, default=LIMIT_CPU_S, help="CPU seconds that one run may use")
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
