"""Runs trials, several at a time; the results of finished ones are read."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.runs.jobs import POLL_S, Job, last_value
from pipelines.sweep.trials import Sweep, Trial
from pipelines.terminal.progress import LazyBar
from pretrain.config.loader import load_experiment
from pretrain.config.overrides import override
from pretrain.config.saved import load_saved
from pretrain.config.target import LOWER_IS_BETTER
from pretrain.engine.run_folder import read_verdict
from pretrain.errors import ConfigError, SetupError
from pretrain.telemetry.sinks import read_metrics


@dataclass(frozen=True)
class Outcome:
    """The result of a trial: ``value`` is None if it failed, with the ``reason``."""

    name: str
    value: float | None
    reason: str
    command: str
    seconds: float


def run(sweep: Sweep, trials: Sequence[Trial], metric: str, what: str) -> list[Outcome]:
    """Runs unfinished trials, ``parallel`` at a time; returns outcomes in the order of the trials."""
    waiting, running = list(trials), {}
    outcomes: dict[str, Outcome] = {}
    with LazyBar(what, len(trials), "runs") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < sweep.parallel:
                    trial = waiting.pop(0)
                    if (done := finished(sweep, trial, metric)) is not None:
                        outcomes[trial.name] = done
                        continue
                    slot = min(set(range(sweep.parallel)) - {used for used, _, _ in running.values()})
                    job = Job(sweep.command(trial), sweep.folder / trial.name, _devices(slot, sweep))
                    running[trial.name] = (slot, job, trial)
                for name, (_, job, trial) in list(running.items()):
                    if job.process.poll() is not None:
                        job.kill()  # the launcher may have left some
                        done = finished(sweep, trial, metric)
                        outcomes[name] = done or _failed(sweep, trial, job.failure())
                        del running[name]
                bar.show(len(outcomes))
                time.sleep(POLL_S)
        finally:
            for _, job, _ in running.values():
                job.kill()
    return [outcomes[trial.name] for trial in trials]


def finished(sweep: Sweep, trial: Trial, metric: str) -> Outcome | None:
    """The outcome of a trial that is over, from its run folder; None if it must be run, or run again.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    folder = sweep.folder / trial.name
    saved = folder / "config.resolved.yaml"
    if not saved.is_file():
        return None
    source = [] if sweep.source is None else [override("init.from", sweep.source)]
    wanted = load_experiment(sweep.config, overrides=[*sweep.overrides, *trial.overrides, *source])
    if load_saved(saved).digest != wanted.digest:
        raise ConfigError(f"{folder} is a run with other settings; give the sweep another folder: --out DIR")
    verdict = read_verdict(folder).value
    if verdict is None:
        return None
    if verdict["outcome"] == "fatal":
        return _failed(sweep, trial, str(verdict.get("reason", "")))
    if verdict["outcome"] != "complete":
        return None
    value = last_value(folder, metric)
    if not math.isfinite(value):
        return _failed(sweep, trial, f"{metric} is {value}")
    return Outcome(trial.name, value, "", sweep.shown(trial), _seconds(folder))


def best_of(outcomes: Sequence[Outcome], metric: str) -> int:
    """The number of the best trial; the first of equal ones.

    Raises:
        SetupError: every trial failed.
    """
    sign = -1 if metric.rpartition("/")[2] in LOWER_IS_BETTER else 1
    values = [-math.inf if outcome.value is None else sign * outcome.value for outcome in outcomes]
    if max(values) == -math.inf:
        reasons = "\n".join(f"  {outcome.name}: {outcome.reason}" for outcome in outcomes)
        raise SetupError(f"no trial came to a {metric}:\n{reasons}")
    return values.index(max(values))


def _devices(slot: int, sweep: Sweep) -> dict[str, str]:
    """The GPUs of a run that shares the machine with others: an equal part of the GPUs that the user selected."""
    if sweep.parallel == 1:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    known = visible.split(",") if visible else [str(number) for number in range(sweep.parallel * sweep.ranks)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(known[slot * sweep.ranks : (slot + 1) * sweep.ranks])}


def _failed(sweep: Sweep, trial: Trial, reason: str) -> Outcome:
    return Outcome(trial.name, None, reason, sweep.shown(trial), _seconds(sweep.folder / trial.name))


def _seconds(folder: Path) -> float:
    """From the first to the last line of a run's metrics."""
    times = [
        line.get("time", 0.0)
        for kind in ("train", "eval")
        for line in read_metrics(folder / "metrics.jsonl", kind).values()
    ]
    return round(max(times) - min(times), 1) if times else 0.0
