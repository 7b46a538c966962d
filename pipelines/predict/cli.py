"""``python -m pipelines predict``: what is on these images?"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pipelines.terminal.arguments import add_model, positive, stage_parser
from pretrain.command_line import Parser
from pretrain.errors import ConfigError, DataError
from pretrain.names import printable, printable_in, shown, tell
from pretrain.outputs import check_output_file, check_output_folder

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.weights.classifier import Prediction
    from pretrain.data.images.opening import Pixels
    from pretrain.data.ledger import Ledger

FORMATS = ("table", "jsonl", "csv")
TOP = 5
IMAGES = "images"
Say = Callable[[str], None]
Answered = TypeVar("Answered")
EXAMPLES = """\
examples:
  python -m pipelines predict photo.jpg --from runs/my_run
  python -m pipelines predict photos/ --from exports/my_run_hf --top 3 --format csv --out predictions.csv
  python -m pipelines predict data/digits/val --from runs/demo_digits --format jsonl
"""


class Source(NamedTuple):
    """One image to classify: how it is called, and what reads its bytes."""

    name: str
    read: Callable[[], bytes]


class Answer(NamedTuple):
    """What is said of one image: lines; or why there are none, with one word for it. A header has no name."""

    name: str
    text: str
    problem: str = ""
    kind: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``. 1: some images could not be read, and all others were answered."""
    args = _parser().parse_args(argv)
    from pretrain.data.ledger import Ledger
    from pretrain.files import write_atomic

    if args.out is not None:
        check_output_file(args.out)
    if args.masks is not None:
        check_output_folder(args.masks, "--masks")
    ledger = Ledger()
    lines: list[str] = []
    take: Callable[[str], None] = tell if args.out is None else lines.append
    num_bad = 0
    for answer in predict(args, ledger):
        if answer.problem:
            num_bad += 1
            ledger.lost(IMAGES, answer.kind, answer.name)
            tell(f"not read: {shown(answer.name)}: {answer.problem}", file=sys.stderr)
        else:
            ledger.used(IMAGES, "answered", bool(answer.name))
            take(answer.text)
    ledger.check("predict")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, "".join(printable(line) + "\n" for line in lines))
    for line in ledger.lines():
        tell(line, file=sys.stderr)
    return 1 if num_bad else 0


def predict(args: argparse.Namespace, ledger: Ledger) -> Iterator[Answer]:
    """The answers, in the order of the images, a micro-batch at a time; the ledger is told of every image found.

    Raises:
        DataError: a path that does not exist or holds no image. ConfigError: an option would be ignored.
    """
    from pipelines.weights.load import task_of
    from pretrain.data.ledger import Ledger

    def say(line: str) -> None:
        tell(line, file=sys.stderr)

    next(images_of(args.images, Ledger()))  # nothing is loaded for a wrong path
    task = task_of(args.source, args.weights)
    if task != "segmentation" and args.masks is not None:
        raise ConfigError(f"--masks is for segmentation; {args.source} was trained for {task}: leave it out")
    if task == "classification":
        yield from predict_classes(args, say, ledger)
        return
    for option in ("top", "activation"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} is for classes; {args.source} was trained for {task}: leave it out")
    if task == "segmentation":
        from pipelines.predict.segmentation import predict_masks

        yield from predict_masks(args, say, ledger)
        return
    from pipelines.predict.regression import predict_numbers

    yield from predict_numbers(args, say, ledger)


def predict_classes(args: argparse.Namespace, say: Say, ledger: Ledger) -> Iterator[Answer]:
    """The best classes of each image, the best first; a header first in CSV."""
    from pipelines.weights.classifier import load_classifier

    classifier = load_classifier(
        args.source,
        weights=args.weights,
        img_size=args.img_size,
        activation=args.activation,
        device=args.device,
        say=say,
    )
    if args.format == "csv":
        yield Answer("", as_csv(["image", "rank", "index", "id", "name", "score"]))
    keys = classifier.keys
    write = {"table": lambda name, found: _table(name, found, keys), "jsonl": _jsonl, "csv": _csv}[args.format]

    def best(images: Tensor) -> list[list[Prediction]]:
        return classifier.best(classifier.probabilities(images), args.top or TOP)

    for answer, found in answers(args, classifier.transform, best, ledger):
        yield answer if found is None else answer._replace(text=write(answer.name, found))


def answers(
    args: argparse.Namespace,
    transform: Callable[[bytes], Pixels],
    answer: Callable[[Tensor], Sequence[Answered]],
    ledger: Ledger,
) -> Iterator[tuple[Answer, Answered | None]]:
    """An answer without text for each image, and what is said of it; None where there is a problem.

    Args:
        args: which images, and how many at a time.
        transform: bytes → pixels.
        answer: pixels uint8 (B, 3, H, W) → what is said of each.
        ledger: is told of every image found.
    """
    from pipelines.weights.network import stack
    from pretrain.errors import BadSample

    remaining = images_of(args.images, ledger)
    while several := list(islice(remaining, args.micro_batch_size)):
        rows, pixels = [], []
        for source in several:
            try:
                pixels.append(transform(source.read()))
                rows.append(Answer(source.name, ""))
            except BadSample as error:
                rows.append(Answer(source.name, "", str(error), error.kind))
            except OSError as error:
                rows.append(Answer(source.name, "", str(error), "read"))
        found = iter(answer(stack(pixels)) if pixels else [])
        yield from ((row, None if row.problem else next(found)) for row in rows)


def images_of(paths: Sequence[Path], ledger: Ledger) -> Iterator[Source]:
    """The images that the paths stand for: files, folders of images (also nested), packed splits.

    The ledger is told of each image when it is found, and of everything else in the folders.

    Raises:
        DataError: one does not exist, or holds no image.
    """
    from pretrain.data.storage.index import TABLE_FILE

    for path in paths:
        if path.is_file():
            found = iter([Source(str(path), path.read_bytes)])
        elif (path / TABLE_FILE).is_file():
            found = _packed(path)
        elif path.is_dir():
            found = _in_folder(path, ledger)
        else:
            raise DataError(f"{path} does not exist: give images, folders of images, or the folder of a packed split")
        for source in found:
            ledger.found(IMAGES)
            yield source


def _in_folder(folder: Path, ledger: Ledger) -> Iterator[Source]:
    from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk
    from pipelines.sources.folder import images_of as images_below

    found = images_below(Walk(folder, ledger))
    if not found:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise DataError(f"{folder}: no image in it ({known}), and no packed split either")
    yield from (Source(str(folder / path), (folder / path).read_bytes) for path, _ in found)


def _packed(folder: Path) -> Iterator[Source]:
    from pretrain.data.storage.index import ShardTable
    from pretrain.data.workers.reader import ShardReader

    table = ShardTable.load(folder)
    if not table.num_samples:
        raise DataError(f"{folder}: holds no image; pack it again, or name another split")
    reader = ShardReader(table)
    for sample_id in range(table.num_samples):
        shard, record = reader.record(sample_id)
        yield Source(f"{shard}/{record.member}", lambda sample_id=sample_id: reader.read(sample_id).data)


def _table(name: str, found: Sequence[Prediction], keys: Sequence[str]) -> str:
    return f"{shown(name)}  " + "  ".join(f"{keys[one.index]} {one.score:.1%}" for one in found)


def _jsonl(name: str, found: Sequence[Prediction]) -> str:
    return as_json({"image": shown(name), "predictions": [vars(one) for one in found]})


def _csv(name: str, found: Sequence[Prediction]) -> str:
    rows = ([shown(name), rank, one.index, one.id, one.name, f"{one.score:.6g}"] for rank, one in enumerate(found, 1))
    return "\n".join(as_csv(row) for row in rows)


def as_json(content: dict[str, object]) -> str:
    """One line of a JSONL file."""
    return json.dumps(printable_in(content), ensure_ascii=False)


def as_csv(cells: Sequence[object]) -> str:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(printable(cell) for cell in cells)
    return text.getvalue()


def _parser() -> Parser:
    parser = stage_parser(
        "predict",
        "Says what trained weights see in images: classes, numbers, or a class for every pixel.",
        EXAMPLES,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|SHARDS", help="what to look at")
    add_model(parser)
    parser.add_argument("--top", type=positive, help=f"classes per image ({TOP})")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the answer")
    parser.add_argument("--out", type=Path, help="a file instead of the terminal; it appears when it is whole")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="segmentation: where a PNG for each image goes")
    return parser
