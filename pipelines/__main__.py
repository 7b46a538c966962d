"""The stages: ``python -m pipelines STAGE …``. A stage is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pretrain.command_line import INTERRUPTED, reader_left
from pretrain.errors import UserError
from pretrain.names import tell

STAGES = {
    "pack": ("pipelines.pack.cli", "images → WebDataset shards with an index and a data set card"),
    "verify": ("pipelines.verify.cli", "reads shards to their end; makes the index of those that have none"),
    "dedup": ("pipelines.dedup.cli", "finds near-duplicates of test sets in a training set: a report and a drop list"),
    "plan": ("pipelines.plan.cli", "a config → parameters, FLOPs, hours, memory, communication, disk and cost"),
    "bench-data": ("pipelines.bench_data.cli", "how many data processes a GPU needs, and which stage limits"),
    "chain": ("pipelines.chain.cli", "on Slurm: the jobs from images to a report, each after the one before it"),
    "status": ("pipelines.status.cli", "the state of a run: step, time left, restarts, last error"),
    "watch": ("pipelines.watch.cli", "the live state of runs in the terminal"),
    "doctor": ("pipelines.doctor.cli", "is this machine right? software, GPUs, disk, memory, clock, speed"),
    "figures": ("pipelines.figures.cli", "weights → pictures: filters, positions, attention distance and maps"),
    "report": ("pipelines.report.cli", "runs → one HTML file: curves, settings, incidents, data, cost, commands"),
    "demo": ("pipelines.demo.cli", "a complete run on embedded real data, in minutes on a CPU"),
    "sweep": ("pipelines.sweep.cli", "a fine-tuning grid: best on the dev split, mean and spread on the test set"),
    "evaluate": ("pipelines.evaluate.cli", "trained weights → accuracy, class by class, and against another model"),
    "probe": ("pipelines.probe.cli", "frozen features → few-shot, nearest neighbours and logistic regression on a set"),
    "predict": ("pipelines.predict.cli", "images → the most probable classes, with their names"),
    "collect": ("pipelines.collect.cli", "finished sweeps → one table beside the published results"),
    "average": ("pipelines.average.cli", "several trained weights → their mean, as one file"),
    "export": ("pipelines.export.cli", "trained weights → timm, Hugging Face, Google's .npz or ONNX, checked"),
}
MOST_SHOWN = 200  # characters of a path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage and returns the exit code; an error that the user can fix is reported in a few lines on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        tell(_usage())
        return 0 if arguments else 2
    stage = arguments[0]
    if stage not in STAGES:
        tell(f"error: unknown stage {stage!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(STAGES[stage][0]).main(arguments[1:])
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


def _usage() -> str:
    lines = [f"  {name:<12}{purpose}" for name, (_, purpose) in STAGES.items()]
    return "\n".join(
        [
            "usage: python -m pipelines STAGE …",
            "",
            *lines,
            "",
            "example: python -m pipelines pack digits --out data/digits --holdout 0.2",
            "help:    python -m pipelines STAGE --help",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
