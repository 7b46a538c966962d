"""Fine-tuning: the same job as pretraining, from given weights, with DistributedDataParallel by Accelerate by default.

accelerate launch pipelines/finetune.py --config configs/finetune/demo_digits.yaml --from runs/demo_digits
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # a launcher puts this file's folder first on the path; the project's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.command_line import Parser
from pretrain.config.tree import override
from pretrain.run import Entry, execute, leave, parse_arguments, training_parser

EXAMPLE = "example: accelerate launch pipelines/finetune.py --config configs/finetune/cifar10.yaml --from runs/my_run"


def parser() -> Parser:
    """The command line of fine-tuning."""
    return training_parser("pipelines/finetune.py", takes_weights=True)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Fine-tuning: ``--from`` is ``init.from``; Accelerate, and a new head, unless the config has another choice.

    Args:
        argv: the arguments; None: of this process.
        prog: the words before them; None: this file.
    """
    example = EXAMPLE if prog is None else f"example: {prog} --config recipe:cifar10 --from runs/my_run"
    arguments = parse_arguments(argv, prog=prog or "pipelines/finetune.py", example=example, takes_weights=True)
    overrides = list(arguments.overrides)
    if arguments.source is not None:
        overrides.append(override("init.from", arguments.source))
    return execute(arguments, overrides, Entry("accelerate", "replace"))


if __name__ == "__main__":
    leave(main())
