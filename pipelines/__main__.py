"""The stages: ``vit-pretrain STAGE …`` or ``python -m pipelines STAGE …``. A stage is imported only when it runs."""

from __future__ import annotations

import difflib
import importlib
import platform
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from pipelines.terminal.arguments import program
from pretrain import __version__
from pretrain.command_line import INTERRUPTED, reader_left
from pretrain.errors import UserError
from pretrain.names import tell


class Stage(NamedTuple):
    """A row of the table of stages.

    Attributes:
        module: has ``main(arguments)``, which returns the exit code, and ``parser()``.
        purpose: shown in the list of stages.
        trains: whether it is a training, whose process ends as a training does (see ``pretrain.run.leave``).
    """

    module: str
    purpose: str
    trains: bool = False


STAGES = {
    "pack": Stage("pipelines.pack.cli", "images → WebDataset shards with an index and a data set card"),
    "verify": Stage("pipelines.verify.cli", "reads shards to their end; makes the index of those that have none"),
    "dedup": Stage("pipelines.dedup.cli", "finds near-duplicates of test sets in a training set; drop list"),
    "plan": Stage("pipelines.plan.cli", "a config → parameters, FLOPs, hours, memory, communication, disk and cost"),
    "bench-data": Stage("pipelines.bench_data.cli", "how many data processes a GPU needs, and which stage limits"),
    "pretrain": Stage("pretrain.run", "trains from a config: one process here; with a launcher, all GPUs", trains=True),
    "finetune": Stage("pipelines.finetune", "the same from trained weights, with a new head", trains=True),
    "chain": Stage("pipelines.chain.cli", "on Slurm: the jobs from images to a report, each after the one before it"),
    "k8s": Stage("pipelines.k8s.cli", "a config → the manifest of a JobSet that trains it on Kubernetes"),
    "slurm-scripts": Stage("pipelines.slurm_scripts.cli", "writes the job scripts and recipes into a folder"),
    "status": Stage("pipelines.status.cli", "the state of a run: step, time left, restarts, last error"),
    "watch": Stage("pipelines.watch.cli", "the live state of runs in the terminal"),
    "goodput": Stage("pipelines.goodput.cli", "what the time of a run was spent on: steps, starts, faults; in money"),
    "replay": Stage("pipelines.replay.cli", "reruns one step of a run; its first tensor that was not finite"),
    "doctor": Stage("pipelines.doctor.cli", "is this machine right? software, GPUs, disk, memory, clock, speed"),
    "figures": Stage("pipelines.figures.cli", "weights → pictures: filters, positions, attention distance and maps"),
    "report": Stage("pipelines.report.cli", "runs → one HTML file: curves, settings, incidents, data, cost, commands"),
    "demo": Stage("pipelines.demo.cli", "a complete run on embedded real data, in minutes on a CPU"),
    "sweep": Stage("pipelines.sweep.cli", "a fine-tuning grid: best on the dev split, mean and spread on the test set"),
    "evaluate": Stage("pipelines.evaluate.cli", "trained weights → accuracy, by class, and against another model"),
    "probe": Stage("pipelines.probe.cli", "frozen features → few-shot, nearest neighbours and logistic regression"),
    "predict": Stage("pipelines.predict.cli", "images → the most probable classes, with their names"),
    "collect": Stage("pipelines.collect.cli", "finished sweeps → one table beside the published results"),
    "average": Stage("pipelines.average.cli", "several trained weights → their mean, as one file"),
    "export": Stage("pipelines.export.cli", "trained weights → timm, Hugging Face, Google's .npz or ONNX, checked"),
}
MOST_SHOWN = 200  # characters of a path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage and returns the exit code; an error that the user can fix is reported in a few lines on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        tell(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        tell(f"vit-pretrain {__version__} (Python {platform.python_version()}, {sys.prefix})")
        return 0
    if arguments[0] == "--print-completion":
        return _print_completion(arguments[1:])
    stage = arguments[0]
    if stage not in STAGES:
        tell(f"error: {_unknown(stage)}", file=sys.stderr)
        return 2
    try:
        return _run(stage, arguments[1:])
    except UserError as error:
        tell(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        return reader_left()
    except (
        OSError
    ) as error:  # a file or folder that was named, or its disk: too long a name, no permission, an I/O error
        if error.filename is None:
            raise
        name = str(error.filename)
        tell(f"error: {name[:MOST_SHOWN]}{'…' if len(name) > MOST_SHOWN else ''}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        tell("interrupted; rerun the same command to continue", file=sys.stderr)
        return INTERRUPTED


def console() -> NoReturn:
    """The console command ``vit-pretrain``; ends the process with the stage's exit code."""
    exit_code = main()
    if len(sys.argv) > 1 and sys.argv[1] in STAGES and STAGES[sys.argv[1]].trains:
        from pretrain.run import leave

        leave(exit_code)
    sys.exit(exit_code)


def _run(stage: str, arguments: Sequence[str]) -> int:
    main_of_stage = importlib.import_module(STAGES[stage].module).main
    if STAGES[stage].trains:  # launchers start these as files, so they must be told how they were called
        return main_of_stage(arguments, prog=f"{program()} {stage}")
    return main_of_stage(arguments)


def _print_completion(arguments: Sequence[str]) -> int:
    from pipelines.terminal.completion import SHELLS, completion_script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        tell(f"error: --print-completion takes one shell: {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    try:
        script = completion_script(
            arguments[0], {name: (stage.module, stage.purpose) for name, stage in STAGES.items()}
        )
    except UserError as error:
        tell(f"error: {error}", file=sys.stderr)
        return error.exit_code
    tell(script)
    return 0


def _unknown(stage: str) -> str:
    near = difflib.get_close_matches(stage, STAGES, n=1)
    if near:
        return f"unknown stage {stage!r}; did you mean {program()} {near[0]}?"
    return f"unknown stage {stage!r}\n\n{_usage()}"


def _usage() -> str:
    width = max(map(len, STAGES)) + 2
    return "\n".join(
        [
            f"usage: {program()} STAGE …",
            "",
            *(f"  {name:<{width}}{stage.purpose}" for name, stage in STAGES.items()),
            "",
            f"example: {program()} pack digits --out data/digits --holdout 0.2",
            f"help:    {program()} STAGE --help",
            f"version: {program()} --version",
            "complete words in the shell: vit-pretrain --print-completion bash (or zsh, tcsh)",
        ]
    )


if __name__ == "__main__":
    console()
