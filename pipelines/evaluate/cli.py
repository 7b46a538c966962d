"""``python -m pipelines evaluate``: how good are trained weights on labelled images, class by class?

Started by torchrun it uses every rank; the figures are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.terminal.arguments import (
    add_data_workers,
    add_json,
    add_model,
    refuse_options_of_others,
    stage_parser,
)
from pipelines.terminal.output import as_csv
from pipelines.weights.load import task_of
from pipelines.weights.ranks import joined, teller
from pretrain.command_line import Parser, check_output_folder
from pretrain.config.schema.evaluation import IMAGENET_REAL, NUMBERS
from pretrain.data.ledger import Ledger
from pretrain.files import write_atomic
from pretrain.names import tell
from pretrain.redaction import redacted_in

if TYPE_CHECKING:
    from pipelines.evaluate.rows import Evaluator
    from pretrain.distributed.rank import Rank

COLLECTIVE_TIMEOUT_S = 1800
# Task of the weights → the options that only it has.
OWN_OPTIONS = {"classification": ("against", "match", "class_map", "targets", "activation")}
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
    args = parser().parse_args(argv)
    if args.out is not None:
        check_output_folder(args.out)
    with joined(args, COLLECTIVE_TIMEOUT_S) as rank:
        result = evaluate(args, rank)
    if rank.is_main:
        tell(json.dumps(result) if args.json else _text(result))
    return 0


def evaluate(args: argparse.Namespace, rank: Rank) -> dict[str, Any]:
    """All figures, which are also what ``--json`` prints; writes the folder of results if one was named.

    Collective: yes.

    Raises:
        ConfigError: incompatible options. DataError: a set cannot be read, or is labelled for another task.
        CheckpointError: weights that cannot be used.
    """
    started = time.monotonic()
    task = task_of(args.source, args.weights)
    refuse_options_of_others(args, task, OWN_OPTIONS)
    found = _evaluator_for(task).evaluate(args, rank, teller(rank))
    result: dict[str, Any] = {"from": str(args.source), "shards": str(args.shards), "img_size": args.img_size}
    result |= {**found.figures, "seconds": round(time.monotonic() - started, 2)}
    if args.out is not None and rank.is_main:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, rows in found.tables().items():
            write_atomic(args.out / name, as_csv(rows))
        content = json.dumps(redacted_in(result | {"command": sys.argv}), indent=1)
        write_atomic(args.out / "result.json", content)  # last: it marks the folder as complete
    return result


def _evaluator_for(task: str) -> Evaluator:
    from pipelines.evaluate import classification, dense  # imports torch
    from pipelines.evaluate.rows import Evaluator

    return {
        "classification": Evaluator(classification.evaluate, classification.text),
        "regression": Evaluator(dense.evaluate_numbers, dense.text_of_numbers),
        "segmentation": Evaluator(dense.evaluate_masks, dense.text_of_masks),
    }[task]


def _text(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = _evaluator_for(result.get("task", "classification")).text(result)
    return "\n".join([*lines, *Ledger.of_dict(result["ledger"]).lines()])


def parser() -> Parser:
    """The command line of the stage."""
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
        help="the set's classes are a subset of the model's, matched by id, by name, or by ids that are output numbers",
    )
    parser.add_argument(
        "--class-map", metavar="FILE", help="map classes to outputs by a CSV with the columns class and output"
    )
    parser.add_argument(
        "--targets", metavar="FILE", help=f"JSON of labels that replace the set's own; {IMAGENET_REAL}: ReaL's"
    )
    add_data_workers(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for result.json, per_class.csv, confusion.csv, calibration.csv, predictions.csv",
    )
    add_json(parser)
    return parser
