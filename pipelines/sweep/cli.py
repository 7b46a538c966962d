"""``python -m pipelines sweep``: a fine-tuning grid, the best trial on the dev split, and its result on the test set.

Each trial is a job as a user would start it, in its own run folder, so a sweep that was stopped resumes: finished
trials are read, an unfinished one continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.runs.processes import last_value
from pipelines.sweep.trials import Sweep, Trial, best_of, quoted, run, start_of
from pipelines.terminal.arguments import add_overrides, positive, stage_parser
from pipelines.terminal.output import counted
from pipelines.weights.transfer import SWEEP_FILE, record_of, transfer_folder
from pretrain.check.derived import load_complete
from pretrain.check.experiment import check
from pretrain.command_line import Parser, check_output_folder
from pretrain.data.storage.packed_set import open_packed
from pretrain.errors import ConfigError
from pretrain.files import write_atomic
from pretrain.names import tell
from pretrain.redaction import redacted_in
from pretrain.shipped_files import located
from pretrain.telemetry.metrics import in_units

EXAMPLES = """\
examples:
  python -m pipelines sweep --config configs/finetune/cifar10.yaml --from runs/vit_l16_i21k_90ep --ranks 8
  python -m pipelines sweep --config configs/finetune/pets.yaml --from runs/l16 --parallel 8
  python -m pipelines sweep --config configs/finetune/pets.yaml --from runs/l16 --dry-run
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_intermixed_args(argv)
    if args.out is not None:
        check_output_folder(args.out)
    sweep, console = read_sweep(args), Console(highlight=False, soft_wrap=True)
    trials = sweep.dev_trials() if sweep.chooses else []
    if args.trial is not None:
        tell("\n".join(sweep.arguments(_trial(sweep, trials, args.trial))))
        return 0
    for trial in trials:
        _check(sweep, trial, sweep.settings.metric, require_data=not args.dry_run)
    test = _check(sweep, sweep.final_trials(0)[0], None, require_data=not args.dry_run)
    if args.dry_run:
        for trial in [*trials, *sweep.final_trials(0)]:
            tell(sweep.shown(trial))
        return 0
    result = run_sweep(sweep, trials, test, console)
    result["command"] = " ".join(["python -m pipelines sweep", *map(quoted, argv)])
    write_atomic(sweep.folder / SWEEP_FILE, json.dumps(redacted_in(result), indent=1))
    _show(console, result, sweep.folder)
    return 0 if all(outcome["value"] is not None for outcome in result["runs"]) else 1


def run_sweep(sweep: Sweep, trials: Sequence[Trial], test: Sequence[str], console: Console) -> dict[str, Any]:
    """Runs the trials, then the best of them with every seed; returns the result as ``sweep.json`` has it.

    Args:
        sweep: its settings.
        trials: on the dev split; none if there is nothing to choose.
        test: the metrics of the test set; a run without the first one has failed.
        console: gets a line about the best trial.

    Raises:
        SetupError: every trial failed.
    """
    started = time.monotonic()
    metric = sweep.settings.metric
    dev = run(sweep, trials, metric, "trials")
    best = best_of(dev, metric) if dev else 0
    if dev:
        console.print(f"best: {dev[best].name} with {metric} {dev[best].value:.4f}")
    runs = run(sweep, sweep.final_trials(best), test[0], "runs of the best")
    folders = [sweep.folder / outcome.name for outcome in runs if outcome.value is not None]
    return {
        "config": sweep.config,
        "from": sweep.source,
        "metric": metric,
        "trials": [asdict(outcome) for outcome in dev],
        "best": sweep.dev_trials()[best].name,
        "runs": [asdict(outcome) for outcome in runs],
        "test": {name: _spread([last_value(folder, name) for folder in folders]) for name in test},
        "data": _records(sweep),
        "ranks": sweep.ranks,
        "seconds": round(time.monotonic() - started, 1),
    }


def read_sweep(args: argparse.Namespace) -> Sweep:
    """The sweep that the arguments name.

    Raises:
        ConfigError: the config has no section ``sweep``, or is wrong.
    """
    experiment = load_complete(
        args.config, overrides=[*args.overrides, *start_of(args.source)], head="replace"
    ).experiment
    if experiment.sweep is None:
        raise ConfigError(
            f"{args.config}: it has no section sweep; add one, such as\n"
            "sweep:\n  grid: {optim.lr: [0.001, 0.003, 0.01, 0.03]}\n"
            "  dev: {data.shards: …, data.num_samples: …, evaluation.sets: {dev: {shards: …, num_samples: …}}}"
        )
    stem = Path(located(args.config)).stem
    base = transfer_folder(args.source) if args.source else Path("runs")
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
    """Raises ConfigError if there is no such trial."""
    if not 0 <= number < len(trials):
        numbers = f"0 to {len(trials) - 1}" if trials else "none: it has one combination and no dev split"
        raise ConfigError(f"{sweep.config}: --trial {number}: the sweep's trials are {numbers}")
    return trials[number]


def _check(sweep: Sweep, trial: Trial, metric: str | None, *, require_data: bool) -> list[str]:
    """Checks a trial before anything starts; returns the main metric, such as ``SET/top1``, of each evaluation set."""
    is_elsewhere = sweep.source is not None and not Path(sweep.source).exists()  # while a sweep is prepared
    resolved = (replace(sweep, source=None) if is_elsewhere and not require_data else sweep).resolved(trial)
    check(resolved, world=sweep.ranks, require_data=require_data, backend="accelerate")
    sets = list(resolved.experiment.evaluation.sets)
    if not sets:
        raise ConfigError(f"{sweep.config}: {trial.name} has no evaluation.sets, so it cannot be compared")
    if metric is not None and metric.partition("/")[0] not in sets:
        raise ConfigError(
            f"{sweep.config}: sweep.metric: {metric} does not match any evaluation set of the trials "
            f"({', '.join(sets)}); name the dev split under sweep.dev, as evaluation.sets"
        )
    return [f"{name}/{chosen.chief_metric}" for name, chosen in resolved.experiment.evaluation.sets.items()]


def _records(sweep: Sweep) -> dict[str, Any]:
    """The sets of the final runs: ``train``, and each evaluation set by its name."""
    experiment = sweep.experiment(sweep.final_trials(0)[0])
    places = {name: own.shards for name, own in experiment.evaluation.sets.items()}
    places |= {"train": experiment.data.sources[0].shards}
    allow_pipe = experiment.data.allow_pipe
    return {
        name: record_of(open_packed(shards, experiment.cluster, allow_pipe=allow_pipe))
        for name, shards in places.items()
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation; None of one value, which has no spread."""
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def _show(console: Console, result: dict[str, Any], folder: Path) -> None:
    table = Table("trial", result["metric"], title=result["config"])
    for trial in result["trials"]:
        failed = trial["value"] is None
        value = "failed: " + trial["reason"].splitlines()[0] if failed else in_units(result["metric"], trial["value"])
        table.add_row(trial["name"] + (" (best)" if trial["name"] == result["best"] else ""), value)
    for metric, spread in result["test"].items():
        if spread["mean"] is not None:
            interval = "" if spread["std"] is None else f" ± {in_units(metric, spread['std'])}"
            seeds = counted(len(spread["values"]), "seed")
            table.add_row(f"{metric}, {seeds} on the full training set", in_units(metric, spread["mean"]) + interval)
    console.print(table)
    console.print(f"{folder / SWEEP_FILE}, in {result['seconds']} s")


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "sweep",
        "Runs the grid of a fine-tuning, picks on the dev split and reports on the test set.",
        EXAMPLES,
    )
    add_overrides(parser)
    parser.add_argument("--config", required=True, help="YAML of the fine-tuning, with a section sweep")
    parser.add_argument(
        "--from", dest="source", metavar="RUN_OR_WEIGHTS", help="weights to start from (default: from scratch)"
    )
    parser.add_argument("--ranks", type=positive, default=1, help="GPUs (or CPU processes) of each run (1)")
    parser.add_argument("--parallel", type=positive, default=1, help="runs at a time, each on its own GPUs (1)")
    parser.add_argument("--out", type=Path, help="folder of the run folders (RUN_transfer/CONFIG)")
    parser.add_argument("--dry-run", action="store_true", help="only check and print the commands")
    parser.add_argument(
        "--trial", type=int, metavar="I", help="print the arguments of trial I, one a line, for a job that runs it"
    )
    return parser
