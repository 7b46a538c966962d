"""``python -m pipelines predict``: what is on these images?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipelines.predict.answers import FORMATS, Answer, answers
from pipelines.sources.given_images import IMAGES, images_of
from pipelines.terminal.arguments import add_model, positive, refuse_options_of_others, stage_parser
from pipelines.weights.load import task_of
from pretrain.command_line import Parser, check_output_file, check_output_folder
from pretrain.data.ledger import Ledger
from pretrain.errors import DataError
from pretrain.files import write_atomic
from pretrain.names import printable, shown, tell

# Task of the weights → the options that only it has.
OWN_OPTIONS = {"classification": ("top", "activation"), "segmentation": ("masks",)}
EXAMPLES = """\
examples:
  python -m pipelines predict photo.jpg --from runs/my_run
  python -m pipelines predict photos/ --from exports/my_run_hf --top 3 --format csv --out predictions.csv
  python -m pipelines predict data/digits/val --from runs/demo_digits --format jsonl
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``. Images that cannot be read are reported and counted; the others are processed."""
    args = parser().parse_args(argv)
    if args.out is not None:
        check_output_file(args.out)
    if args.masks is not None:
        check_output_folder(args.masks, "--masks")
    ledger, lines = Ledger(), list[str]()
    take: Callable[[str], None] = tell if args.out is None else lines.append
    for answer in predict(args, ledger):
        if answer.problem:
            ledger.lost(IMAGES, answer.kind, answer.name)
            tell(f"not read: {shown(answer.name)}: {answer.problem}", file=sys.stderr)
        else:
            ledger.used(IMAGES, "answered", bool(answer.name))
            take(answer.text)
    ledger.check("predict")
    account = ledger.accounts[IMAGES]
    if account.num_lost == account.found:
        raise DataError(f"no image could be read, of {account.found:,}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, "".join(printable(line) + "\n" for line in lines))
    for line in ledger.lines():
        tell(line, file=sys.stderr)
    return 0


def predict(args: argparse.Namespace, ledger: Ledger) -> Iterator[Answer]:
    """The answers, in the order of the images, a micro-batch at a time; every image found is recorded in the ledger.

    Raises:
        DataError: a path that does not exist or holds no image. ConfigError: an option would be ignored.
    """
    next(images_of(args.images, Ledger()))  # report a wrong path before anything is loaded
    task = task_of(args.source, args.weights)
    refuse_options_of_others(args, task, OWN_OPTIONS)
    from pipelines.predict.heads import HEADS  # imports torch

    head = HEADS[task](args, lambda line: tell(line, file=sys.stderr))
    yield from answers(head, images_of(args.images, ledger), args.format, args.micro_batch_size)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "predict",
        "Runs trained weights on images and predicts classes, numbers, or a class for every pixel.",
        EXAMPLES,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|SHARDS", help="images to process")
    add_model(parser)
    parser.add_argument("--top", type=positive, help="classes per image (5)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="format of the output (table)")
    parser.add_argument("--out", type=Path, help="write to this file, atomically (default: the terminal)")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="segmentation: folder for a PNG per image")
    return parser
