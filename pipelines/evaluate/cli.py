"""``python -m pipelines evaluate``: how good are trained weights on labelled images, class by class?

Started by torchrun it uses every rank; the figures are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipelines.runs.ranks import joined
from pipelines.terminal.arguments import add_data_workers, add_json, add_model, stage_parser
from pretrain.command_line import Parser
from pretrain.config.schema.evaluation import IMAGENET_REAL, NUMBERS
from pretrain.errors import ConfigError
from pretrain.names import tell
from pretrain.outputs import check_output_folder
from pretrain.redaction import redacted_in

if TYPE_CHECKING:
    from pretrain.distributed.rank import Rank
    from pretrain.models.metadata import Task

COLLECTIVE_TIMEOUT_S = 1800
EXAMPLES = """\
examples:
  python -m pipelines evaluate data/digits/val --from runs/demo_digits
  python -m pipelines evaluate data/imagenet/val --from runs/l16 --img-size 384 --out results/l16_384
  python -m pipelines evaluate data/imagenet/val --from runs/l16_i21k --match ids
  python -m pipelines evaluate data/imagenet/val --from runs/l16 --targets imagenet_real
  python -m pipelines evaluate data/imagenet_v2/train --from runs/l16 --match numbers
  python -m pipelines evaluate data/cifar10/test --from runs/a --against runs/b
  torchrun --nproc_per_node 8 -m pipelines evaluate data/imagenet/val --from runs/l16
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    if args.out is not None:
        check_output_folder(args.out)
    with joined(args, COLLECTIVE_TIMEOUT_S) as rank:
        result = evaluate(args, rank)
    if rank.is_main:
        tell(json.dumps(result) if args.json else _text(result))
    return 0


def _module_for(task: Task) -> ModuleType | None:
    """What evaluates weights that were trained for something else than classes."""
    if task == "classification":
        return None
    from pipelines.evaluate import regression, segmentation

    return {"regression": regression, "segmentation": segmentation}[task]


def evaluate(args: argparse.Namespace, rank: Rank) -> dict[str, Any]:
    """All figures, which are also what ``--json`` prints. Collective: yes.

    Raises:
        ConfigError: options that do not go together. DataError: a set that cannot be read, or is labelled otherwise.
        CheckpointError: weights that cannot be used.
    """
    from pipelines.evaluate import classification
    from pipelines.weights.load import task_of

    started = time.monotonic()

    def say(line: str) -> None:
        if rank.is_main:
            tell(line, file=sys.stderr)

    task = task_of(args.source, args.weights)
    if task != "classification":
        return _evaluate_other(task, args, rank, say, started)
    return classification.evaluate(args, rank, say, started)


def _evaluate_other(
    task: Task, args: argparse.Namespace, rank: Rank, say: Callable[[str], None], started: float
) -> dict[str, Any]:
    """Figures of what is no classifier, whose module says what they are."""
    for option in ("against", "match", "class_map", "targets", "activation"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for classes; {args.source} was trained for {task}: leave it out"
            )
    module = _module_for(task)
    assert module is not None
    found = module.evaluate(args, rank, say)
    result: dict[str, Any] = {"from": str(args.source), "shards": str(args.shards), "img_size": args.img_size}
    result |= {"task": task, **found, "seconds": round(time.monotonic() - started, 2)}
    if args.out is not None and rank.is_main:
        from pipelines.evaluate.tables import as_csv
        from pretrain.files import write_atomic

        args.out.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out / module.TABLE_FILE, as_csv(module.table(result)))
        write_atomic(args.out / "result.json", json.dumps(redacted_in(result | {"command": sys.argv}), indent=1))
    return result


def _text(result: dict[str, Any]) -> str:
    other = _module_for(result.get("task", "classification"))
    if other is not None:
        return other.text(result)
    from pipelines.evaluate import classification

    return classification.text(result)


def _parser() -> Parser:
    parser = stage_parser(
        "evaluate",
        "Measures trained weights on a packed, labelled split.",
        EXAMPLES,
    )
    parser.add_argument("shards", type=Path, help="folder of a packed split")
    add_model(parser)
    parser.add_argument("--against", type=Path, metavar="RUN_OR_WEIGHTS", help="a second model on the same images")
    parser.add_argument(
        "--match",
        choices=("ids", "names", NUMBERS),
        help="the set's classes are some of the model's: of the same id or name, or their ids are the outputs' numbers",
    )
    parser.add_argument("--class-map", metavar="FILE", help="the same by a CSV with the columns class and output")
    parser.add_argument(
        "--targets", metavar="FILE", help=f"JSON of labels in the place of the set's own; {IMAGENET_REAL}: ReaL's"
    )
    add_data_workers(parser)
    parser.add_argument(
        "--out", type=Path, help="folder for result.json, per_class.csv, confusion.csv, calibration.csv"
    )
    add_json(parser)
    return parser
