"""``python -m pipelines sweep``: a fine-tuning grid, its best trial by the dev split, and that one on the test set.

Each trial is a job as a user starts it, in a run folder of its own, so a sweep that was stopped goes on where it was:
finished trials are read, an unfinished one resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.data_record import record_of
from pipelines.jobs import POLL_S, Job, free_port, last_value
from pipelines.predict import positive
from pipelines.progress import LazyBar
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.config.saved import load_saved
from pretrain.config.schema.sweep import SweepConfig
from pretrain.config.target import LOWER_IS_BETTER
from pretrain.data.sources import open_packed
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.telemetry.metrics import in_units
from pretrain.telemetry.sinks import read_metrics

RESULT_FILE = "sweep.json"
SCRIPT = "pipelines/finetune.py"
EXAMPLES = """\
examples:
  python -m pipelines sweep --config configs/finetune/cifar10.yaml --from runs/vit_l16_i21k_90ep --ranks 8
  python -m pipelines sweep --config configs/finetune/pets.yaml --from runs/l16 --parallel 8
  python -m pipelines sweep --config configs/finetune/pets.yaml --from runs/l16 --dry-run
"""


@dataclass(frozen=True)
class Trial:
    """One run: ``overrides`` are ``key=value`` as on the command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: ``value`` is None where it failed, and ``reason`` says why."""

    name: str
    value: float | None
    reason: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """Everything that decides what is run.

    Attributes:
        config: YAML of the fine-tuning.
        source: what it starts from; None: from scratch.
        folder: its run folders lie here.
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
        """Whether trials are run: not where the grid has one combination and no dev split is named."""
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
        """Runs of the best combination on the whole training set, one for each seed."""
        values = list(itertools.product(*self.settings.grid.values()))[best]
        chosen = _all_overrides(dict(zip(self.settings.grid, values, strict=True)))
        seeds = range(self.seed, self.seed + self.settings.num_seeds)
        return [Trial(f"seed{seed}", (*chosen, f"seed={seed}")) for seed in seeds]

    def arguments(self, trial: Trial) -> list[str]:
        """The words after the script's name."""
        start = [] if self.source is None else ["--from", self.source]
        place = [f"output_dir={self.folder}", f"name={trial.name}"]
        return ["--config", self.config, *start, *self.overrides, *trial.overrides, *place]

    def command(self, trial: Trial) -> list[str]:
        """The whole command line."""
        if self.ranks == 1:
            return [sys.executable, SCRIPT, *self.arguments(trial)]
        torchrun = str(Path(sys.executable).parent / "torchrun")
        port = ["--master-port", str(free_port())]
        return [torchrun, "--nproc-per-node", str(self.ranks), *port, SCRIPT, *self.arguments(trial)]

    def shown(self, trial: Trial) -> str:
        """The command as a user would type it."""
        start = "python" if self.ranks == 1 else f"torchrun --nproc-per-node {self.ranks}"
        return " ".join([start, SCRIPT, *map(_quoted, self.arguments(trial))])


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_intermixed_args(argv)
    sweep, console = read_sweep(args), Console(highlight=False, soft_wrap=True)
    trials = sweep.dev_trials() if sweep.chooses else []
    if args.trial is not None:
        print("\n".join(sweep.arguments(_trial(sweep, trials, args.trial))))
        return 0
    for trial in trials:
        _check(sweep, trial, sweep.settings.metric, require_data=not args.dry_run)
    test = _check(sweep, sweep.final_trials(0)[0], None, require_data=not args.dry_run)
    if args.dry_run:
        for trial in [*trials, *sweep.final_trials(0)]:
            print(sweep.shown(trial))
        return 0
    started = time.monotonic()
    dev = run(sweep, trials, sweep.settings.metric, "trials")
    best = best_of(dev, sweep.settings.metric) if dev else 0
    if dev:
        console.print(f"best: {dev[best].name} with {sweep.settings.metric} {dev[best].value:.4f}")
    final = {metric: [] for metric in test}
    runs = run(sweep, sweep.final_trials(best), test[0], "runs of the best")
    for outcome in (outcome for outcome in runs if outcome.value is not None):
        for metric in test:
            final[metric].append(last_value(sweep.folder / outcome.name, metric))
    result = {
        "config": sweep.config,
        "from": sweep.source,
        "metric": sweep.settings.metric,
        "trials": [asdict(outcome) for outcome in dev],
        "best": sweep.dev_trials()[best].name,
        "runs": [asdict(outcome) for outcome in runs],
        "test": {metric: _spread(values) for metric, values in final.items()},
        "data": _records(sweep),
        "ranks": sweep.ranks,
        "command": " ".join(["python -m pipelines sweep", *map(_quoted, argv)]),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_atomic(sweep.folder / RESULT_FILE, json.dumps(result, indent=1))
    _show(console, result, sweep.folder)
    return 0 if all(outcome.value is not None for outcome in runs) else 1


def read_sweep(args: argparse.Namespace) -> Sweep:
    """The sweep that the arguments name.

    Raises:
        ConfigError: the config has no section ``sweep``, or is wrong.
    """
    experiment = load_experiment(args.config, overrides=args.overrides).experiment
    if experiment.sweep is None:
        raise ConfigError(
            f"{args.config}: it has no section sweep; add one, such as\n"
            "sweep:\n  grid: {optim.lr: [0.001, 0.003, 0.01, 0.03]}\n"
            "  dev: {data.shards: …, data.num_samples: …, evaluation.sets: {dev: {shards: …, num_samples: …}}}"
        )
    stem = Path(args.config).stem
    base = Path(f"{str(args.source).rstrip('/')}_transfer") if args.source else Path("runs")
    return Sweep(
        config=str(args.config),
        source=args.source,
        folder=args.out or base / stem,
        settings=experiment.sweep,
        overrides=tuple(args.overrides),
        seed=experiment.seed,
        ranks=args.ranks,
        parallel=args.parallel,
    )


def _trial(sweep: Sweep, trials: Sequence[Trial], number: int) -> Trial:
    """Raises ConfigError where there is no such trial."""
    if not 0 <= number < len(trials):
        numbers = f"0 to {len(trials) - 1}" if trials else "none: it has one combination and no dev split"
        raise ConfigError(f"{sweep.config}: --trial {number}: the sweep's trials are {numbers}")
    return trials[number]


def _check(sweep: Sweep, trial: Trial, metric: str | None, *, require_data: bool) -> list[str]:
    """Checks a trial before anything is started; returns the chief metric ``SET/top1`` of each evaluation set."""
    resolved = load_experiment(sweep.config, overrides=[*sweep.overrides, *trial.overrides])
    check(resolved, world=sweep.ranks, require_data=require_data, backend="accelerate")
    sets = list(resolved.experiment.evaluation.sets)
    if not sets:
        raise ConfigError(f"{sweep.config}: {trial.name} has no evaluation.sets, so nothing says how good it is")
    if metric is not None and metric.partition("/")[0] not in sets:
        raise ConfigError(
            f"{sweep.config}: sweep.metric: {metric} is of no evaluation set of the trials ({', '.join(sets)}); name "
            "the dev split under sweep.dev, as evaluation.sets"
        )
    return [f"{name}/{chosen.chief_metric}" for name, chosen in resolved.experiment.evaluation.sets.items()]


def _records(sweep: Sweep) -> dict[str, Any]:
    """What the final runs trained on and were measured on: ``train``, and each evaluation set by its name."""
    experiment = load_experiment(
        sweep.config, overrides=[*sweep.overrides, *sweep.final_trials(0)[0].overrides]
    ).experiment
    places = {name: own.shards for name, own in experiment.evaluation.sets.items()}
    places |= {"train": experiment.data.sources[0].shards}
    allow_pipe = experiment.data.allow_pipe
    return {
        name: record_of(open_packed(shards, experiment.cluster, allow_pipe=allow_pipe))
        for name, shards in places.items()
    }


def run(sweep: Sweep, trials: Sequence[Trial], metric: str, what: str) -> list[Outcome]:
    """Runs what is not finished, ``parallel`` at a time; outcomes in the order of the trials."""
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
                        job.kill()  # what a launcher may have left
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
    """What a run folder says of a trial that is over; None where it must (still, or again) be run.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    folder = sweep.folder / trial.name
    saved = folder / "config.resolved.yaml"
    if not saved.is_file():
        return None
    source = [] if sweep.source is None else [f"init.from={sweep.source}"]
    wanted = load_experiment(sweep.config, overrides=[*sweep.overrides, *trial.overrides, *source])
    if load_saved(saved).digest != wanted.digest:
        raise ConfigError(f"{folder} is a run with other settings; give the sweep another folder: --out DIR")
    try:
        verdict = json.loads((folder / "exit.json").read_text())
    except (OSError, ValueError):
        return None
    if verdict["outcome"] == "fatal":
        return _failed(sweep, trial, verdict["reason"])
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


def as_overrides(key: str, value: Any) -> list[str]:
    """``key=value`` for the command line; a section takes the place of the config's, and is not merged with it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return [f"{key}=null", f"{key}={text}"] if isinstance(value, Mapping) else [f"{key}={text}"]


def _all_overrides(chosen: Mapping[str, Any]) -> list[str]:
    return [text for key, value in chosen.items() for text in as_overrides(key, value)]


def _in_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")


def _devices(slot: int, sweep: Sweep) -> dict[str, str]:
    """The GPUs of a run that is not the only one; the user's own choice of GPUs is cut into equal parts."""
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
        line["time"] for kind in ("train", "eval") for line in read_metrics(folder / "metrics.jsonl", kind).values()
    ]
    return round(max(times) - min(times), 1) if times else 0.0


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for one value)."""
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def _quoted(word: str) -> str:
    return f"'{word}'" if re.search(r"[^A-Za-z0-9_./:=,+-]", word) else word


def _show(console: Console, result: dict[str, Any], folder: Path) -> None:
    table = Table("trial", result["metric"], title=result["config"])
    for trial in result["trials"]:
        failed = trial["value"] is None
        value = "failed: " + trial["reason"].splitlines()[0] if failed else in_units(result["metric"], trial["value"])
        table.add_row(trial["name"] + (" (best)" if trial["name"] == result["best"] else ""), value)
    for metric, spread in result["test"].items():
        if spread["mean"] is not None:
            figures = f"{in_units(metric, spread['mean'])} ± {in_units(metric, spread['std'])}"
            table.add_row(f"{metric}, {len(spread['values'])} seeds on the whole training set", figures)
    console.print(table)
    console.print(f"{folder / RESULT_FILE}, in {result['seconds']} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines sweep",
        description="Runs the grid of a fine-tuning, picks on the dev split and reports on the test set.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings of every run")
    parser.add_argument("--config", required=True, help="YAML of the fine-tuning, with a section sweep")
    parser.add_argument("--from", dest="source", metavar="RUN_OR_WEIGHTS", help="weights to start from; none: scratch")
    parser.add_argument("--ranks", type=positive, default=1, help="GPUs (or CPU processes) of each run (1)")
    parser.add_argument("--parallel", type=positive, default=1, help="runs at a time, each on GPUs of its own (1)")
    parser.add_argument("--out", type=Path, help="folder of the run folders (RUN_transfer/CONFIG)")
    parser.add_argument("--dry-run", action="store_true", help="check, and print the commands only")
    parser.add_argument(
        "--trial", type=int, metavar="I", help="print the arguments of trial I, one a line, for a job that runs it"
    )
    return parser
