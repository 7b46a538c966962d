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

from pretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.classifier import Prediction
    from pretrain.data.decode import Pixels

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("table", "jsonl", "csv")
TOP = 5
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
    """What is said of one image: lines; or why there are none."""

    name: str
    text: str
    problem: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``. 1: some images could not be read, and all others were answered."""
    args = _parser().parse_args(argv)
    from pretrain.files import write_atomic

    lines: list[str] = []
    take: Callable[[str], None] = print if args.out is None else lines.append
    num_bad = 0
    for answer in predict(args):
        if answer.problem:
            num_bad += 1
            print(f"not read: {answer.name}: {answer.problem}", file=sys.stderr)
        else:
            take(answer.text)
    if args.out is not None:
        write_atomic(args.out, "".join(line + "\n" for line in lines))
    return 1 if num_bad else 0


def predict(args: argparse.Namespace) -> Iterator[Answer]:
    """The answers, in the order of the images, a micro-batch at a time.

    Raises:
        DataError: a path that does not exist or holds no image. ConfigError: an option would be ignored.
    """
    from pipelines.weights import task_of

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    next(images_of(args.images))  # nothing is loaded for a wrong path
    task = task_of(args.source, args.weights)
    if task != "segmentation" and args.masks is not None:
        raise ConfigError(f"--masks is for segmentation; {args.source} was trained for {task}: leave it out")
    if task == "classification":
        yield from predict_classes(args, say)
        return
    for option in ("top", "activation"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option} is for classes; {args.source} was trained for {task}: leave it out")
    if task == "segmentation":
        from pipelines.predicting.segmentation import predict_masks

        yield from predict_masks(args, say)
        return
    from pipelines.predicting.regression import predict_numbers

    yield from predict_numbers(args, say)


def predict_classes(args: argparse.Namespace, say: Say) -> Iterator[Answer]:
    """The best classes of each image, the best first; a header first in CSV."""
    from pipelines.classifier import load_classifier

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
    write = {"table": _table, "jsonl": _jsonl, "csv": _csv}[args.format]

    def best(images: Tensor) -> list[list[Prediction]]:
        return classifier.best(classifier.probabilities(images), args.top or TOP)

    for name, found, problem in answers(args, classifier.transform, best):
        yield Answer(name, "" if found is None else write(name, found), problem)


def answers(
    args: argparse.Namespace, transform: Callable[[bytes], Pixels], answer: Callable[[Tensor], Sequence[Answered]]
) -> Iterator[tuple[str, Answered | None, str]]:
    """(name, what is said of it, or None and why) of each image.

    Args:
        args: which images, and how many at a time.
        transform: bytes → pixels.
        answer: pixels uint8 (B, 3, H, W) → what is said of each.
    """
    from pipelines.network import stack
    from pretrain.data.faults import BadSample

    remaining = images_of(args.images)
    while several := list(islice(remaining, args.micro_batch_size)):
        rows, pixels = [], []
        for source in several:
            try:
                pixels.append(transform(source.read()))
                rows.append((source.name, ""))
            except (BadSample, OSError) as error:
                rows.append((source.name, str(error)))
        found = iter(answer(stack(pixels)) if pixels else [])
        yield from ((name, None if problem else next(found), problem) for name, problem in rows)


def images_of(paths: Sequence[Path]) -> Iterator[Source]:
    """The images that the paths stand for: files, folders of images (also nested), packed splits.

    Raises:
        DataError: one does not exist, or holds no image.
    """
    from pretrain.data.index import TABLE_FILE

    for path in paths:
        if path.is_file():
            yield Source(str(path), path.read_bytes)
        elif (path / TABLE_FILE).is_file():
            yield from _packed(path)
        elif path.is_dir():
            yield from _in_folder(path)
        else:
            raise DataError(f"{path} does not exist: give images, folders of images, or the folder of a packed split")


def _in_folder(folder: Path) -> Iterator[Source]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder}: no image in it ({known}), and no packed split either")
    yield from (Source(str(path), path.read_bytes) for path in found)


def _packed(folder: Path) -> Iterator[Source]:
    from pretrain.data.index import ShardTable
    from pretrain.data.reader import ShardReader

    table = ShardTable.load(folder)
    if not table.num_samples:
        raise DataError(f"{folder}: holds no image; pack it again, or name another split")
    reader = ShardReader(table)
    for sample_id in range(table.num_samples):
        shard, record = reader.record(sample_id)
        yield Source(f"{shard}/{record.member}", lambda sample_id=sample_id: reader.read(sample_id).data)


def _table(name: str, found: Sequence[Prediction]) -> str:
    return f"{name}  " + "  ".join(f"{one.name} {one.score:.1%}" for one in found)


def _jsonl(name: str, found: Sequence[Prediction]) -> str:
    return json.dumps({"image": name, "predictions": [vars(one) for one in found]}, ensure_ascii=False)


def _csv(name: str, found: Sequence[Prediction]) -> str:
    return "\n".join(
        as_csv([name, rank, one.index, one.id, one.name, f"{one.score:.6g}"]) for rank, one in enumerate(found, start=1)
    )


def as_csv(cells: Sequence[object]) -> str:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines predict",
        description="Says what trained weights see in images: classes, numbers, or a class for every pixel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|SHARDS", help="what to look at")
    add_weights_arguments(parser)
    parser.add_argument("--top", type=positive, help=f"classes per image ({TOP})")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the answer")
    parser.add_argument("--out", type=Path, help="a file instead of the terminal; it appears when it is whole")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="segmentation: where a PNG for each image goes")
    return parser


def add_weights_arguments(parser: argparse.ArgumentParser, *, classifies: bool = True) -> None:
    """The options of every stage that uses trained weights; ``classifies``: it looks at their logits."""
    parser.add_argument(
        "--from", dest="source", required=True, type=Path, metavar="RUN_OR_WEIGHTS", help="run, checkpoint, any weights"
    )
    parser.add_argument("--weights", choices=("raw", "ema"), default="raw", help="of a run: trained, or their average")
    parser.add_argument("--img-size", type=positive, help="pixels; by default the weights' own")
    if classifies:
        parser.add_argument(
            "--activation", choices=("softmax", "sigmoid"), help="by default that of the run's objective"
        )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default the GPU where there is one")
    parser.add_argument("--micro-batch-size", type=positive, default=64, help="images in one forward pass (64)")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number
