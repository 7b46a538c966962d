"""Runs the cells, several at a time, and remembers each that is done.

A run is the project's own command, in a process that is forked from one that has imported everything: the imports would
cost more than many of these trainings.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.transferring.cells import Cell
from benchmarks.transferring.positions import NewPositions
from pipelines.sweep.trials import as_overrides
from pretrain.errors import ConfigError
from pretrain.telemetry.metrics import read_metrics

CONFIG = "benchmarks/transferring/small.yaml"
RESULTS = "results.jsonl"
POLL_S = 0.05
TAIL_LINES = 12


@dataclass(frozen=True)
class Run:
    """One training of a cell: ``rate`` is None where the cell's choice is meant."""

    cell: Cell
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        name = f"{self.cell.key.replace('/', '.')}.seed{self.seed}"
        return name if self.rate is None else f"{name}.lr{self.rate:g}"


class Results:
    """Runs that are done: a line of JSON for each in ``results.jsonl``; of equal names the last counts."""

    def __init__(self, path: Path, cells: Mapping[str, Cell]) -> None:
        self.path, self._cells = path, cells
        self.lines: dict[str, dict[str, Any]] = {}
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:  # cut short by a kill
                continue
            self.lines[line["run"]] = line

    def add(self, line: dict[str, Any]) -> None:
        """Writes a line, and is sure that it is on the disk."""
        self.lines[line["run"]] = line
        with open(self.path, "a") as file:
            file.write(f"\n{json.dumps(line)}")  # a line that a kill cut short stays on a line of its own
            file.flush()
            os.fsync(file.fileno())

    def metric(self, run: str, name: str) -> float | None:
        """A metric of a run's last evaluation; None: not done, or failed."""
        line = self.lines.get(run)
        return None if line is None or line["failed"] else line["metrics"].get(name)

    def rate(self, cell: Cell) -> float | None:
        """The learning rate that the dev split chose for a cell; None: not known yet."""
        if isinstance(cell.rates, str):
            return self.rate(self._cells[cell.rates])
        if len(cell.rates) == 1:
            return cell.rates[0]
        trials = [Run(cell, 0, rate).name for rate in cell.rates]
        if any(trial not in self.lines for trial in trials):
            return None
        values = [self.metric(trial, cell.judge) for trial in trials]
        ranked = [-math.inf if value is None or not math.isfinite(value) else value for value in values]
        return None if max(ranked) == -math.inf else cell.rates[ranked.index(max(ranked))]

    def final(self, cell: Cell, seed: int) -> str | None:
        """The name of the run that counts for a seed; None: its learning rate is not chosen yet."""
        if seed or isinstance(cell.rates, str) or len(cell.rates) == 1:
            return Run(cell, seed).name
        rate = self.rate(cell)
        return None if rate is None else Run(cell, 0, rate).name


def all_runs(cells: Sequence[Cell], num_seeds: int) -> list[Run]:
    """Every run, seed 0 of everything first. The trials of the learning rates are seed 0."""
    runs = []
    for seed in range(num_seeds):
        for cell in cells:
            trials = cell.rates if not seed and not isinstance(cell.rates, str) and len(cell.rates) > 1 else (None,)
            runs += [Run(cell, seed, rate) for rate in trials]
    return runs


def settings_of(run: Run, results: Results, folder: Path, weights: Path | None) -> dict[str, Any] | None:
    """All dotted settings of a run; None: what it needs is not there yet."""
    rate = run.rate or results.rate(run.cell)
    if rate is None:
        return None
    place = {"output_dir": str(folder / "runs"), "name": run.name, "seed": run.seed}
    source = {} if weights is None else {"init.from": str(weights)}
    return {**run.cell.settings, **place, **source, "optim.lr": rate}


def arguments_of(settings: Mapping[str, Any]) -> list[str]:
    """The words after the script's name."""
    return ["--config", CONFIG, *(word for key, value in settings.items() for word in as_overrides(key, value))]


class Pool:
    """Processes that are forked ready; each is one run."""

    def __init__(self, parallel: int) -> None:
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._parallel = parallel
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", "benchmarks.transferring.process"])
        self._running: dict[str, tuple[Any, float]] = {}

    @property
    def is_full(self) -> bool:
        """Whether nothing more can be started now."""
        return len(self._running) >= self._parallel

    @property
    def running(self) -> list[str]:
        """Names of the runs on their way."""
        return list(self._running)

    def start(
        self, name: str, entry: str, arguments: Sequence[str], folder: Path, positions: NewPositions | None
    ) -> None:
        """Starts a run, after its weights with new positions are written."""
        from benchmarks.transferring.process import execute

        folder.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(
            target=execute, args=(entry, list(arguments), str(folder), positions), name=name
        )
        process.start()
        self._running[name] = (process, time.monotonic())

    def ended(self) -> Iterator[tuple[str, int, float]]:
        """Name, exit code and seconds of every run that ended since the last question."""
        for name, (process, started) in list(self._running.items()):
            if not process.is_alive():
                process.join()
                del self._running[name]
                yield name, process.exitcode, time.monotonic() - started

    def kill(self) -> None:
        """Ends what still runs."""
        for process, _ in self._running.values():
            process.kill()
            process.join()
        self._running.clear()


def line_of(run: Run, settings: Mapping[str, Any], folder: Path, exit_code: int, seconds: float) -> dict[str, Any]:
    """The record of a run that ended."""
    evaluations = read_metrics(folder / "metrics.jsonl", "eval")
    metrics = evaluations[max(evaluations)] if evaluations and exit_code == 0 else {}
    cpu = folder / "cpu_seconds"
    tail = "\n".join((folder / "output.txt").read_text(errors="replace").splitlines()[-TAIL_LINES:])
    return {
        "run": run.name,
        "cell": run.cell.key,
        "seed": run.seed,
        "rate": settings["optim.lr"],
        "metrics": {name: value for name, value in metrics.items() if "/" in name},
        "failed": "" if metrics else tail or f"exit code {exit_code}",
        "seconds": round(seconds, 1),
        "cpu_seconds": float(cpu.read_text()) if cpu.is_file() else None,
        "command": shlex.join(["python", run.cell.entry, *arguments_of(settings)]),
    }


def check_same(line: Mapping[str, Any], run: Run, settings: Mapping[str, Any]) -> None:
    """Refuses to continue in a folder whose runs had other settings.

    Raises:
        ConfigError: they had.
    """
    command = shlex.join(["python", run.cell.entry, *arguments_of(settings)])
    if line["command"] != command:
        raise ConfigError(
            f"{run.name} was run with other settings; give another folder with --out\n"
            f"  then: {line['command']}\n  now:  {command}"
        )
