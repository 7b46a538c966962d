"""Does it work? Pretrain, transfer, compare: the paper's questions at a scale that two CPU cores can answer.

    python -m benchmarks.transfer --out runs/transfer --parallel 2 --photos PHOTOS
    python -m benchmarks.transfer --out runs/transfer --parallel 2 --photos PHOTOS --only transfer/photos
    python -m benchmarks.transfer --out runs/transfer_quick --quick

Small ViTs and a small ResNet of BiT are pretrained on Fashion-MNIST and on openclipart's categories (Debian:
``apt-get install openclipart-png dataset-fashion-mnist``) and transferred to digits, to each other's set, and to photos
at twice the resolution (``--photos``: folders train, validation and test with one folder per class). Every run goes
through ``pretrain/run.py`` or ``pipelines/finetune.py``, every set through ``pipelines pack``.

Each finished run is a line of ``results.jsonl`` in the folder; rerun the same command to continue after a stop. It ends
with the tables, ``tables.md`` in the folder and, with ``--page``, in a page between its marks.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.transferring.cells import FULL, QUICK, Cell, Plan
from benchmarks.transferring.positions import NewPositions
from benchmarks.transferring.runs import (
    POLL_S,
    RESULTS,
    Pool,
    Results,
    Run,
    all_runs,
    arguments_of,
    check_same,
    line_of,
    settings_of,
)  # fmt: skip
from benchmarks.transferring.sets import SETS, pack_sets
from benchmarks.transferring.tables import Tables, fill
from pipelines.terminal.arguments import positive, program_parser
from pretrain.command_line import Parser
from pretrain.distributed.processes import installed
from pretrain.errors import ConfigError, UserError
from pretrain.files import write_atomic

CLIPART = Path("/usr/share/openclipart/png")
PICTURE = Path("results_scale.svg")  # beside the tables, and beside the page
PACKAGES = ("torch", "timm", "accelerate", "scikit-learn")


class Experiment:
    """A plan, what is done of it, and the runs on their way."""

    def __init__(self, plan: Plan, out: Path, num_seeds: int, only: Sequence[str]) -> None:
        self.plan, self.out = plan, out
        self.results = Results(out / RESULTS, plan.cells)
        self.tables = Tables(plan, self.results, num_seeds)
        cells = [cell for cell in plan.cells.values() if cell.key in wanted(plan.cells, only)]
        self.runs = all_runs(cells, num_seeds)

    def go(self, parallel: int) -> list[str]:
        """Runs what is not done, ``parallel`` at a time; returns the names of what failed or could not be started."""
        pool, waiting = Pool(parallel), self._waiting()
        started: dict[str, tuple[Run, dict]] = {}
        try:
            while waiting or pool.running:
                begun = [] if pool.is_full else self._begin(pool, waiting)
                for run, settings in begun:
                    started[run.name] = (run, settings)
                    waiting.remove(run)
                if not begun and not pool.running:
                    break  # the rest waits for runs that failed
                for name, exit_code, seconds in pool.ended():
                    run, settings = started.pop(name)
                    line = line_of(run, settings, self.folder(run), exit_code, seconds)
                    self.results.add(line)
                    _say(line, len(self.runs) - len(waiting) - len(pool.running), len(self.runs))
                time.sleep(POLL_S)
        finally:
            pool.kill()
        return [run.name for run in self.runs if self.results.lines.get(run.name, {"failed": "never run"})["failed"]]

    def folder(self, run: Run) -> Path:
        """The run folder."""
        return self.out / "runs" / run.name

    def _waiting(self) -> list[Run]:
        """Runs that are not done; failed ones are tried again.

        Raises:
            ConfigError: what is done had other settings.
        """
        waiting = []
        for run in self.runs:
            line = self.results.lines.get(run.name)
            if line is None or line["failed"]:
                self.results.lines.pop(run.name, None)
                waiting.append(run)
        for run in self.runs:
            line, ready = self.results.lines.get(run.name), self._prepare(run)
            if line is not None and ready is not None:
                check_same(line, run, ready[0])
        return waiting

    def _begin(self, pool: Pool, waiting: Sequence[Run]) -> list[tuple[Run, dict]]:
        """Starts the first run that has all that it needs."""
        for run in waiting:
            ready = self._prepare(run)
            if ready is not None:
                settings, positions = ready
                pool.start(run.name, run.cell.entry, arguments_of(settings), self.folder(run), positions)
                return [(run, settings)]
        return []

    def _prepare(self, run: Run) -> tuple[dict, NewPositions | None] | None:
        """Settings of a run, and the weights to be written for it; None: what it starts from is not done."""
        cell = run.cell
        if cell.source is None:
            settings = settings_of(run, self.results, self.out, None)
            return None if settings is None else (settings, None)
        source = self.results.final(self.plan.cells[cell.source], run.seed)
        if source is None or self.results.lines.get(source, {"failed": "not yet"})["failed"]:
            return None
        weights = self.out / "runs" / source
        if cell.positions == "resized":
            settings = settings_of(run, self.results, self.out, weights)
            return None if settings is None else (settings, None)
        file = self.out / "new_positions" / f"{run.name}.safetensors"
        settings = settings_of(run, self.results, self.out, file)
        return None if settings is None else (settings, NewPositions(weights, dict(settings["model"]), run.seed, file))


def wanted(cells: dict[str, Cell], only: Sequence[str]) -> set[str]:
    """Keys that begin with one of ``only`` (none: all), and of what those need.

    Raises:
        ConfigError: one fits nothing.
    """
    chosen: set[str] = set()
    for prefix in only or [""]:
        fits = {key for key in cells if key.startswith(prefix)}
        if not fits:
            raise ConfigError(f"--only {prefix}: no cell begins so; cells are {', '.join(cells)}")
        chosen |= fits
    while True:
        needed = {cells[key].source for key in chosen} | {
            rates for key in chosen if isinstance(rates := cells[key].rates, str)
        }
        more = {key for key in needed if key is not None} - chosen
        if not more:
            return chosen
        chosen |= more


def draw(experiment: Experiment, out: Path) -> None:
    """The curves over the upstream size as an SVG, as far as there are any."""
    from pipelines.figures.pictures import draw_curves, encode

    curves = experiment.tables.curves("test/top1")
    if curves:
        figure = draw_curves(curves, "images of the upstream set", "upstream test, top-1 in %")
        write_atomic(out, encode(figure, "svg"))


def features(experiment: Experiment) -> str:
    """The table of how much the features of digits differ, of all networks that are there."""
    from benchmarks.transferring.spread import measure

    tables = experiment.tables
    names = [name for key in tables.pretrained().values() for name in tables.networks(key)]
    runs = {name: experiment.out / "runs" / name for name in names}
    return tables.features(measure(runs, experiment.plan.data / SETS["digits"].test, experiment.out / "features"))


def report(experiment: Experiment, command: str, page: Path | None) -> str:
    """Writes the tables and the command that made them."""
    tables, missing = experiment.tables.all(), experiment.tables.missing()
    tables["features"] = features(experiment)
    versions = ", ".join(f"{name} {version}" for name, version in installed(PACKAGES).items())
    run = (
        f"`{command}`\n\n{time.strftime('%Y-%m-%d')}; {os.cpu_count()} CPU cores ({platform.machine()}), one "
        f"thread a run; Python {platform.python_version()}, {versions}; {experiment.tables.cost()}.\n"
    )
    left = "Missing: " + "; ".join(missing) + ".\n" if missing else "No cell is missing.\n"
    parts = {**tables, "run": run, "missing": left}
    text = "\n".join(f"## {name}\n\n{part}" for name, part in parts.items())
    write_atomic(experiment.out / "tables.md", text)
    draw(experiment, experiment.out / PICTURE)
    if page is not None:
        fill(page, parts)
        draw(experiment, page.parent / PICTURE)
    return text


def command_of(options: argparse.Namespace) -> str:
    """The command that makes the same figures, with a placeholder instead of the photos' folder."""
    words = ["python -m benchmarks.transfer", "--out", str(options.out), "--parallel", str(options.parallel)]
    for name in ("seeds", "budget", "clipart"):
        if (value := getattr(options, name)) != _parser().get_default(name):
            words += [f"--{name}", str(value)]
    words += ["--photos", "PHOTOS"] if options.photos is not None else []
    words += ["--quick"] if options.quick else []
    return " ".join([*words, *(part for prefix in options.only for part in ("--only", prefix))])


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the runs on their way end too
    options = _parser().parse_args(argv)
    try:
        data = options.out / "data"
        pack_sets(data, options.clipart, options.photos, options.quick)
        scale = QUICK if options.quick else FULL
        plan = Plan(scale, data, options.photos is not None or options.quick, options.budget)
        experiment = Experiment(plan, options.out, 1 if options.quick else options.seeds, options.only)
        failed = [] if options.tables else experiment.go(options.parallel)
        print(report(experiment, command_of(options), options.page))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for name in failed:
        print(f"failed: {name}, see {options.out / 'runs' / name / 'output.txt'}", file=sys.stderr)
    return 1 if failed else 0


def _say(line: dict, done: int, total: int) -> None:
    judged = {name: f"{100 * value:.1f}" for name, value in line["metrics"].items() if name.endswith(SHOWN)}
    what = "failed" if line["failed"] else " ".join(f"{name} {value}" for name, value in judged.items())
    cost = f"{line['seconds']:.0f} s, {line['cpu_seconds']} s of CPU"
    print(f"{time.strftime('%H:%M:%S')} {done}/{total} {line['run']} ({cost}): {what}", flush=True)


SHOWN = ("top1", "mAP", "_shot")


def _parser() -> Parser:
    parser = program_parser("python -m benchmarks.transfer", __doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="folder of data, runs and results")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="folders train, validation, test; none: left out")
    parser.add_argument("--clipart", type=Path, default=CLIPART, metavar="FOLDER", help=f"nested folders ({CLIPART})")
    parser.add_argument("--only", action="append", default=[], metavar="CELL", help="cells that begin so; repeatable")
    parser.add_argument("--parallel", type=positive, default=1, help="runs at a time, one thread each (1)")
    parser.add_argument("--seeds", type=positive, default=3, help="seeds of each cell (3)")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on the steps of every training (1)")
    parser.add_argument("--quick", action="store_true", help="all cells in seconds, on digits: whether it runs at all")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables of what is done")
    parser.add_argument("--page", type=Path, help="page whose marked parts are replaced, such as docs/results.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
