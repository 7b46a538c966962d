"""Runs the benchmarks that the docs name and writes the results to docs/benchmarks.md.

    make bench                                                   # all of them, at their full size
    make bench BENCH="--photos DIR"                              # with photos, which some of them need
    python -m benchmarks --only engine memory --quick

Each runs in its own process and ends with one line of JSON. This line is kept in benchmarks/results.json with its
command, date, machine, versions and the load average at its start. The page is written from that file, so a benchmark
that is not rerun keeps its figures and their date. If one fails, it is named, the others run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.page import page
from pipelines.terminal.arguments import program_parser
from pretrain.command_line import Parser
from pretrain.distributed.processes import installed
from pretrain.errors import ConfigError, SetupError, UserError
from pretrain.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results.json"
PACKAGES = ("torch", "deepspeed", "timm", "torchvision", "transformers", "webdataset", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is run.

    Attributes:
        quick: words for a size that takes seconds; its figures mean little.
        photos: its option for a folder of photos, if it has one.
        by_name: it takes hours, so it runs only if it is named.
    """

    quick: tuple[str, ...]
    photos: str | None = None
    by_name: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "engine": Benchmark(("--variant", "Ti/16", "--img-size", "64", "--rounds", "2", "--steps", "4")),
    "train_step": Benchmark(("--variant", "Ti/16", "--img-size", "64", "--batch", "2", "--rounds", "1")),
    "optimizers": Benchmark(("--variant", "Ti/16", "--rounds", "1")),
    "memory": Benchmark(("--variant", "Ti/16", "--img-size", "64", "--rounds", "1")),
    "loader": Benchmark(
        ("--limit", "64", "--images", "64", "--rounds", "1", "--sizes", "original", "--workers", "1"), photos="--photos"
    ),
    "dedup": Benchmark(("--test", "10", "--others", "40", "--million", "10000"), photos="--images"),
    "plan": Benchmark(()),
    "transfer": Benchmark(("--out", "runs/transfer_quick", "--quick"), photos="--photos", by_name=True),
    "restart": Benchmark(("--tiny",), by_name=True),
    "conformance": Benchmark(("--systems", "ours", "--laws", "once", "ranks"), by_name=True),
    "foundation": Benchmark(("--per-class", "2", "--epochs", "1", "--size", "28"), photos="--photos", by_name=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen benchmarks; the exit code is 1 if one of them failed."""
    options = _parser().parse_args(argv)
    try:
        return run_all(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished benchmarks are on the page", file=sys.stderr)
        return 130


def run_all(options: argparse.Namespace) -> int:
    """Runs the chosen benchmarks one after the other; the page is written after each.

    Raises:
        ConfigError: a name is unknown, or the photos are not a folder. SetupError: the page cannot be written.
    """
    unknown = [name for name in options.only if name not in BENCHMARKS]
    if unknown:
        raise ConfigError(f"--only {' '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    if options.photos is not None and not options.photos.is_dir():
        raise ConfigError(f"--photos {options.photos}: no such folder")
    names = options.only or [name for name, benchmark in BENCHMARKS.items() if not benchmark.by_name]
    failed = []
    for name in names:
        command = command_of(name, BENCHMARKS[name], options)
        print(f"==== {shlex.join(command)}", flush=True)
        found = run_one(name, command, options)
        if found is None:
            failed.append(name)
            continue
        keep(name, found, quick=options.quick)
    if failed:
        print(f"error: {', '.join(failed)} failed; see above. The page keeps their previous figures", file=sys.stderr)
    return 1 if failed else 0


def command_of(name: str, benchmark: Benchmark, options: argparse.Namespace) -> list[str]:
    """The command of a benchmark, as it can be typed."""
    words = ["python", "-m", f"benchmarks.{name}", *(benchmark.quick if options.quick else ())]
    if benchmark.photos is not None and options.photos is not None:
        words += [benchmark.photos, str(options.photos)]
    return words


def run_one(name: str, command: Sequence[str], options: argparse.Namespace) -> dict[str, Any] | None:
    """The record of one benchmark for the page; None when it failed."""
    record = {
        "command": shlex.join("DIR" if word == str(options.photos) else word for word in command),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
    }
    began = time.monotonic()
    last = ""
    with subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    if process.returncode:
        print(f"error: {name} left with {process.returncode}", file=sys.stderr)
        return None
    try:
        result = json.loads(last)
    except ValueError:
        result = {}  # it writes a page of its own
    if "skipped" in result:
        print(f"error: {name} was skipped: {result['skipped']}", file=sys.stderr)
        return None
    return {**record, "seconds": round(time.monotonic() - began, 1), "result": result}


def keep(name: str, found: Mapping[str, Any], *, quick: bool) -> None:
    """Stores one result and writes the page; a quick result does not replace one at full size.

    Raises:
        SetupError: it cannot be written.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if quick and not results.get(name, {}).get("quick", True):
        print(f"{name}: the page keeps its figures at full size")
        return
    results[name] = {**found, "quick": quick}
    try:
        write_atomic(RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_atomic(PAGE, page({name: results[name] for name in BENCHMARKS if name in results}))
    except OSError as error:
        raise SetupError(f"{PAGE} cannot be written: {error}") from error


def _parser() -> Parser:
    parser = program_parser("python -m benchmarks", __doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, only to test that they run")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="a folder of JPEGs, for loader, dedup and transfer")
    return parser


if __name__ == "__main__":
    sys.exit(main())
