"""Fine-tuning: the same job as pretraining, from given weights, with DistributedDataParallel by Accelerate by default.

accelerate launch pipelines/finetune.py --config configs/finetune/demo_digits.yaml --from runs/demo_digits
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # a launcher puts this file's folder first on the path; the project's root belongs there
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pretrain.config.overrides import override
from pretrain.run import Entry, execute, leave, parse_arguments

EXAMPLE = "example: accelerate launch pipelines/finetune.py --config configs/finetune/cifar10.yaml --from runs/my_run"


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tuning: ``--from`` is ``init.from``; Accelerate, and a new head, unless the config has another choice."""
    arguments = parse_arguments(argv, prog="pipelines/finetune.py", example=EXAMPLE, takes_weights=True)
    overrides = list(arguments.overrides)
    if arguments.source is not None:
        overrides.append(override("init.from", arguments.source))
    return execute(arguments, overrides, Entry("accelerate", "replace"))


if __name__ == "__main__":
    leave(main())
