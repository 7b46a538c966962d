"""``python -m pipelines dedup``: which images of a training set show an image of a test set?

OUT/drop.jsonl     one line per image to leave out: shard, key, image, because; for data.drop_list and pack --drop-list
OUT/report.html    the pairs side by side
OUT/summary.json   counts and settings
OUT/prints/        fingerprints of every image; a killed run resumes from them
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dedup.matching import DEFAULT_THRESHOLD, RADIUS, Candidate, Looking, Match, TestSide, look
from pipelines.dedup.prints import COARSE_VIEWS, VIEWS, PrintJob, Prints, make_prints
from pipelines.dedup.report import Pair, write_report
from pipelines.dedup.sets import ImageSet
from pipelines.runs.processes import run_tasks
from pipelines.terminal.arguments import add_json, add_workers, stage_parser
from pipelines.terminal.output import LazyBar
from pretrain.command_line import Parser, check_output_folder
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.errors import ConfigError, DataError
from pretrain.files import write_atomic
from pretrain.names import shown, tell

IMAGES_AT_ONCE = 200_000
LOOKS_PER_TASK = 500
EXAMPLES = """examples:
  python -m pipelines dedup data/upstream/train --against data/cifar10/test data/pets/test --out data/upstream-dedup
then either  data.drop_list=data/upstream-dedup/drop.jsonl  when training,
or           python -m pipelines pack webdataset data/upstream/train --drop-list data/upstream-dedup/drop.jsonl …"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    if not 0 < args.threshold <= 1 or not 0 <= args.radius <= 16:
        raise ConfigError("--threshold must be in (0, 1] and --radius in 0 … 16")
    check_output_folder(args.out)
    summary = deduplicate(args)
    if args.json:
        tell(json.dumps(summary))
        return 0
    tell(f"{summary['num_upstream']:,} images against {summary['num_test']:,} of {len(args.against)} test sets")
    for how, count in summary["found"].items():
        tell(f"  {count:>8,}  {how}")
    tell(f"{summary['num_dropped']:,} images to drop: {args.out / 'drop.jsonl'}, shown in {args.out / 'report.html'}")
    for line in Ledger.of_dict(summary["ledger"]).lines():
        tell(line)
    return 0


def deduplicate(args: argparse.Namespace) -> dict[str, Any]:
    """Finds and writes everything; returns the summary.

    Raises:
        DataError: a folder holds no images.
    """
    started, ledger = time.monotonic(), Ledger()
    upstream = ImageSet.open(args.upstream, ledger)
    tests = [ImageSet.open(path, ledger) for path in args.against]
    args.out.mkdir(parents=True, exist_ok=True)
    pairs, num_test = _pairs(upstream, tests, args, ledger)
    lines = [json.dumps(_line(upstream, pair)) for pair in pairs]
    write_atomic(args.out / "drop.jsonl", "".join(f"{line}\n" for line in lines))
    summary = {
        "upstream": shown(args.upstream),
        "against": [shown(path) for path in args.against],
        "num_upstream": upstream.num_images,
        "num_test": num_test,
        "num_dropped": len(pairs),
        "found": dict(sorted(Counter(pair.match.how for pair in pairs).items())),
        "ledger": ledger.to_dict(),
        "threshold": args.threshold,
        "radius": args.radius,
        "seconds": round(time.monotonic() - started, 1),
    }
    ledger.check(args.upstream)
    write_report(args.out / "report.html", upstream, pairs, summary)
    write_atomic(args.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _pairs(
    upstream: ImageSet, tests: Sequence[ImageSet], args: argparse.Namespace, ledger: Ledger
) -> tuple[list[Pair], int]:
    """The pairs in the order of the upstream images, and the number of test images."""
    workers, folder = args.workers or len(os.sched_getaffinity(0)), args.out / "prints"
    jobs = [PrintJob(images, folder, VIEWS, True) for images in tests]
    job = PrintJob(upstream, folder, COARSE_VIEWS, False)
    for one in [*jobs, job]:
        _make_all(one, workers)
        _account(ledger, one)
    side = TestSide(_joined([Prints.load(one.path(part)) for one in jobs for part in range(len(one.images.parts))]))
    places = [
        (images, part, index, named.name)
        for images in tests
        for part in range(len(images.parts))
        for index, named in enumerate(images.names(part))
    ]
    pairs: list[Pair] = []
    for parts in _chunks(upstream):
        prints = _joined([Prints.load(job.path(part)) for part in parts])
        owners = [(part, index, named) for part in parts for index, named in enumerate(upstream.names(part))]
        for match in _matches(side, prints, args, workers):
            pairs.append(Pair(*owners[match.upstream], *places[match.test], match))
    return sorted(pairs, key=lambda pair: (pair.part, pair.index)), len(places)


def _account(ledger: Ledger, job: PrintJob) -> None:
    """Records in the ledger which images of a set can be compared.

    Raises:
        DataError: not one can be read.
    """
    kind = f"images of {shown(job.images.name)}"
    ledger.found(kind, job.images.num_images)
    num_readable = 0
    for part in range(len(job.images.parts)):
        prints, names = Prints.load(job.path(part)), job.images.names(part)
        num_readable += int(prints.readable.sum())
        flat = prints.readable & ~prints.usable
        ledger.used(kind, "compared", int(prints.usable.sum()))
        for reason, which in (("cannot be read", ~prints.readable), ("too flat: exact copies only", flat)):
            rows = np.flatnonzero(which).tolist()
            ledger.lost(kind, reason, *(names[row].name for row in rows[:MOST_EXAMPLES]), count=len(rows))
    if not num_readable:
        raise DataError(f"{shown(job.images.name)}: none of its {job.images.num_images:,} images could be read")


def _make_all(job: PrintJob, workers: int) -> None:
    parts = range(len(job.images.parts))
    with LazyBar(f"hashing {job.images.name}", job.images.num_images, "images") as bar:
        for _ in run_tasks(make_prints, parts, job, min(workers, len(parts)), bar.show):
            pass


def _chunks(images: ImageSet) -> Iterator[list[int]]:
    """Groups of parts with about ``IMAGES_AT_ONCE`` images, so that memory use does not depend on the set's size."""
    chunk: list[int] = []
    count = 0
    for part, size in enumerate(images.sizes):
        chunk.append(part)
        count += size
        if count >= IMAGES_AT_ONCE:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def _matches(side: TestSide, prints: Prints, args: argparse.Namespace, workers: int) -> list[Match]:
    """The best match of every upstream image that has one."""
    best: dict[int, Match] = {match.upstream: match for match in side.exact(prints.content)}
    candidates = [one for one in side.candidates(prints, args.radius) if one.upstream not in best]
    tasks = (
        [_pictures(one, prints, side) for one in candidates[start : start + LOOKS_PER_TASK]]
        for start in range(0, len(candidates), LOOKS_PER_TASK)
    )
    num_tasks = -(-len(candidates) // LOOKS_PER_TASK)
    with LazyBar("comparing", len(candidates), "candidates") as bar:
        for matches in run_tasks(look, tasks, Looking(args.threshold), min(workers, num_tasks), bar.show):
            for match in matches:
                known = best.get(match.upstream)
                if known is None or (match.score, -match.test) > (known.score, -known.test):
                    best[match.upstream] = match
    return list(best.values())


def _pictures(one: Candidate, prints: Prints, side: TestSide) -> tuple[Candidate, Any, Any]:
    return one, prints.thumbnail(one.upstream), side.prints.thumbnail(one.test)


def _joined(prints: Sequence[Prints]) -> Prints:
    names = Prints.__dataclass_fields__
    return Prints(**{name: np.concatenate([getattr(one, name) for one in prints]) for name in names})


def _line(upstream: ImageSet, pair: Pair) -> dict[str, Any]:
    key, name = map(shown, pair.named)
    place = {"file": key} if upstream.files else {"shard": shown(upstream.parts[pair.part]), "key": key, "image": name}
    because = f"{pair.match.how} of {shown(pair.test.name)}: {shown(pair.test_name)}"
    return {**place, "because": because, "score": round(pair.match.score, 3)}


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser("dedup", "Finds exact and near-duplicates of test images in a training set.", EXAMPLES)
    add = parser.add_argument
    add("upstream", type=Path, metavar="UPSTREAM", help="packed split to clean (or a folder of images)")
    add("--against", type=Path, nargs="+", required=True, metavar="TEST", help="packed splits or folders of images")
    add("--out", type=Path, required=True, help="folder for the drop list, the report and the fingerprints")
    add("--threshold", type=float, default=DEFAULT_THRESHOLD, help=f"minimum correlation ({DEFAULT_THRESHOLD})")
    add("--radius", type=int, default=RADIUS, help=f"most bits of 63 in which a candidate's hash may differ ({RADIUS})")
    add_workers(parser)
    add_json(parser, "the summary as one line of JSON")
    return parser
