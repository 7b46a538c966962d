"""The stages: ``python -m pipelines STAGE …``. A stage is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pretrain.errors import UserError

STAGES = {
    "pack": ("pipelines.pack", "images → WebDataset shards with an index and a data set card"),
    "chain": ("pipelines.chain", "on Slurm: the jobs from images to a report, each after the one before it"),
    "status": ("pipelines.status", "where a run stands: state, step, time left, restarts, last error"),
    "demo": ("pipelines.demo", "the whole job on embedded real data, in minutes on a CPU"),
    "export": ("pipelines.export", "trained weights → timm, Hugging Face, Google's .npz or ONNX, checked"),
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage and returns the exit code; a user's mistake is a few lines on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    stage = arguments[0]
    if stage not in STAGES:
        print(f"error: unknown stage {stage!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(STAGES[stage][0]).main(arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
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
