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
from typing import TYPE_CHECKING, NamedTuple

from pretrain.errors import DataError

if TYPE_CHECKING:
    from pipelines.classifier import Prediction

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMATS = ("table", "jsonl", "csv")
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


class Row(NamedTuple):
    """The answer for one image: classes, the best first; or why there is none."""

    name: str
    predictions: list[Prediction]
    problem: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``. 1: some images could not be read, and all others were answered."""
    args = _parser().parse_args(argv)
    from pretrain.files import write_atomic

    write = {"table": _table, "jsonl": _jsonl, "csv": _csv}[args.format]
    lines: list[str] = []
    take: Callable[[str], None] = print if args.out is None else lines.append
    num_bad = 0
    for number, row in enumerate(predict(args)):
        if number == 0 and args.format == "csv":
            take(_line(["image", "rank", "index", "id", "name", "score"]))
        if row.problem:
            num_bad += 1
            print(f"not read: {row.name}: {row.problem}", file=sys.stderr)
        else:
            take(write(row))
    if args.out is not None:
        write_atomic(args.out, "".join(line + "\n" for line in lines))
    return 1 if num_bad else 0


def predict(args: argparse.Namespace) -> Iterator[Row]:
    """The answers, in the order of the images, a micro-batch at a time.

    Raises:
        DataError: a path that does not exist or holds no image.
    """
    from pipelines.classifier import load_classifier, stack
    from pretrain.data.faults import BadSample

    sources = images_of(args.images)
    first = next(sources)  # nothing is loaded for a wrong path
    classifier = load_classifier(
        args.source,
        weights=args.weights,
        img_size=args.img_size,
        activation=args.activation,
        device=args.device,
        say=lambda line: print(line, file=sys.stderr),
    )

    def all_sources() -> Iterator[Source]:
        yield first
        yield from sources

    remaining = all_sources()
    while several := list(islice(remaining, args.micro_batch_size)):
        rows, pixels = [], []
        for source in several:
            try:
                pixels.append(classifier.transform(source.read()))
                rows.append(Row(source.name, []))
            except (BadSample, OSError) as error:
                rows.append(Row(source.name, [], str(error)))
        answers = iter(classifier.best(classifier.probabilities(stack(pixels)), args.top) if pixels else [])
        yield from (row if row.problem else row._replace(predictions=next(answers)) for row in rows)


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
    reader = ShardReader(table)
    for sample_id in range(table.num_samples):
        shard, record = reader.record(sample_id)
        yield Source(f"{shard}/{record.member}", lambda sample_id=sample_id: reader.read(sample_id).data)


def _table(row: Row) -> str:
    return f"{row.name}  " + "  ".join(f"{one.name} {one.score:.1%}" for one in row.predictions)


def _jsonl(row: Row) -> str:
    return json.dumps({"image": row.name, "predictions": [vars(one) for one in row.predictions]}, ensure_ascii=False)


def _csv(row: Row) -> str:
    return "\n".join(
        _line([row.name, rank, one.index, one.id, one.name, f"{one.score:.6g}"])
        for rank, one in enumerate(row.predictions, start=1)
    )


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines predict",
        description="Classifies images with trained weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE|FOLDER|SHARDS", help="what to classify")
    add_weights_arguments(parser)
    parser.add_argument("--top", type=positive, default=5, help="classes per image (5)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the answer")
    parser.add_argument("--out", type=Path, help="a file instead of the terminal; it appears when it is whole")
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
