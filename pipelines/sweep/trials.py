"""The runs of a sweep: a trial for each combination of the grid, then the best one on the full training set.

Several run at a time; the results of finished ones are read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.processes import POLL_S, Job, entry_script, free_port, last_value
from pipelines.terminal.output import LazyBar
from pretrain.check.derived import load_complete
from pretrain.config.loader import Resolved, load_saved
from pretrain.config.schema.evaluation import LOWER_IS_BETTER
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.jobs import SweepConfig
from pretrain.config.tree import override
from pretrain.engine.run_folder import read_verdict
from pretrain.errors import ConfigError, SetupError
from pretrain.telemetry.metrics import read_metrics

SCRIPT = "pipelines/finetune.py"


@dataclass(frozen=True)
class Trial:
    """One run: ``overrides`` are ``key=value`` as on the command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Everything that determines the trials.

    Attributes:
        config: YAML of the fine-tuning.
        source: what it starts from; None: from scratch.
        folder: contains its run folders.
        settings: the config's section ``sweep``.
        overrides: of every run, as on the command line.
        seed: of the first run of the best settings.
        ranks: GPUs of each run.
        parallel: runs at a time.
    """

    config: str
    source: str | None
    folder: Path
    settings: SweepConfig
    overrides: tuple[str, ...]
    seed: int
    ranks: int
    parallel: int

    @property
    def chooses(self) -> bool:
        """Whether trials are run: not if the grid has one combination and there is no dev split."""
        return bool(self.settings.dev) or math.prod(len(values) for values in self.settings.grid.values()) > 1

    def dev_trials(self) -> list[Trial]:
        """A trial for each combination of the grid."""
        keys = list(self.settings.grid)
        dev = [text for key, value in self.settings.dev.items() for text in as_overrides(key, value)]
        trials = []
        for values in itertools.product(*self.settings.grid.values()):
            chosen = dict(zip(keys, values, strict=True))
            name = "_".join(["dev", *(f"{key.rpartition('.')[2]}{_in_name(value)}" for key, value in chosen.items())])
            trials.append(Trial(name, (*dev, *_all_overrides(chosen))))
        return trials

    def final_trials(self, best: int) -> list[Trial]:
        """Runs of the best combination on the full training set, one for each seed."""
        values = list(itertools.product(*self.settings.grid.values()))[best]
        chosen = _all_overrides(dict(zip(self.settings.grid, values, strict=True)))
        seeds = range(self.seed, self.seed + self.settings.num_seeds)
        return [Trial(f"seed{seed}", (*chosen, f"seed={seed}")) for seed in seeds]

    def experiment(self, trial: Trial) -> Experiment:
        """The settings of one run."""
        return self.resolved(trial).experiment

    def resolved(self, trial: Trial) -> Resolved:
        """The same, with the origin of each setting."""
        overrides = [*self.overrides, *trial.overrides, *start_of(self.source)]
        return load_complete(self.config, overrides=overrides, head="replace")

    def arguments(self, trial: Trial) -> list[str]:
        """The words after the script's name."""
        start = [] if self.source is None else ["--from", self.source]
        place = [override("output_dir", str(self.folder)), override("name", trial.name)]
        return ["--config", self.config, *start, *self.overrides, *trial.overrides, *place]

    def command(self, trial: Trial) -> list[str]:
        """The full command line."""
        if self.ranks == 1:
            return [sys.executable, entry_script(SCRIPT), *self.arguments(trial)]
        torchrun = str(Path(sys.executable).parent / "torchrun")
        port = ["--master-port", str(free_port())]
        return [torchrun, "--nproc-per-node", str(self.ranks), *port, entry_script(SCRIPT), *self.arguments(trial)]

    def shown(self, trial: Trial) -> str:
        """The command as a user would type it."""
        start = "python" if self.ranks == 1 else f"torchrun --nproc-per-node {self.ranks}"
        return " ".join([start, entry_script(SCRIPT), *map(quoted, self.arguments(trial))])


def start_of(source: str | None) -> list[str]:
    """The override for weights to start from."""
    return [] if source is None else [override("init.from", source)]


def as_overrides(key: str, value: Any) -> list[str]:
    """``key=value`` for the command line; a section replaces the config's and is not merged with it."""
    text = override(key, value)
    return [f"{key}=null", text] if isinstance(value, Mapping) else [text]


def quoted(word: str) -> str:
    """A word as it is typed in a shell."""
    return shlex.quote(word) if re.search(r"[^A-Za-z0-9_./:=,+-]", word) else word


def _all_overrides(chosen: Mapping[str, Any]) -> list[str]:
    return [text for key, value in chosen.items() for text in as_overrides(key, value)]


def _in_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")


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
    waiting, running, gpus = list(trials), {}, gpus_of_slots(sweep)
    outcomes: dict[str, Outcome] = {}
    lengths = {trial.name: sweep.experiment(trial).num_steps for trial in trials}
    with LazyBar(f"{len(trials)} {what}", sum(lengths.values()), "steps") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < sweep.parallel:
                    trial = waiting.pop(0)
                    if (done := finished(sweep, trial, metric)) is not None:
                        outcomes[trial.name] = done
                        continue
                    slot = min(set(range(sweep.parallel)) - {used for used, _, _ in running.values()})
                    job = Job(sweep.command(trial), sweep.folder / trial.name, gpus[slot])
                    running[trial.name] = (slot, job, trial)
                for name, (_, job, trial) in list(running.items()):
                    if job.process.poll() is not None:
                        job.kill()  # the launcher may have left some
                        done = finished(sweep, trial, metric)
                        outcomes[name] = done or _failed(sweep, trial, job.failure())
                        del running[name]
                bar.show(sum(lengths[name] for name in outcomes) + sum(job.step for _, job, _ in running.values()))
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
    if load_saved(saved).digest != sweep.resolved(trial).digest:
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


def gpus_of_slots(sweep: Sweep) -> list[dict[str, str]]:
    """The variables of the runs that share the machine: an equal part of the visible GPUs for each.

    Raises:
        SetupError: there are fewer GPUs than the runs need, or none can be used on a machine that has some.
    """
    if sweep.parallel == 1:
        return [{}]
    import torch

    from pretrain.distributed.device import VISIBLE, choose_device

    wanted = sweep.experiment(Trial("", ())).cluster.wanted_device
    if choose_device(wanted).type == "cpu":
        return [{}] * sweep.parallel
    count, needed, listed = torch.cuda.device_count(), sweep.parallel * sweep.ranks, os.environ.get(VISIBLE)
    names = listed.split(",") if listed else [str(number) for number in range(count)]
    if needed > count:
        raise SetupError(
            f"--parallel {sweep.parallel} × --ranks {sweep.ranks} needs {needed} GPUs, but {count} can be used "
            f"({VISIBLE}={listed or 'is not set'}): use --parallel {max(1, count // sweep.ranks)}"
        )
    first = range(0, needed, sweep.ranks)
    return [{VISIBLE: ",".join(names[start : start + sweep.ranks])} for start in first]


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
