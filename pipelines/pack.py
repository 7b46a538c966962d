"""``python -m pipelines pack``: images → WebDataset shards with an index and a data set card.

OUT/pack.json             options and digest of the source's list: the same command goes on or has nothing to do
OUT/SPLIT/shard-*.tar     and the files beside them, see pretrain/data/index.py and card.py
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.packing.finish import QUARANTINE_FILE, encode_lines, finish_split, quarantined_in
from pipelines.packing.plan import PackOptions, Plan, make_plan
from pipelines.packing.pool import run_shards
from pipelines.packing.shard import is_done
from pipelines.progress import LazyBar
from pipelines.sources.digits import DigitsSource
from pipelines.sources.fashion_mnist import FashionMnistSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.protocol import Source
from pretrain.data.card import Card
from pretrain.data.index import TABLE_FILE, ShardTable
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic

STATE_FILE = "pack.json"
LOCK_FILE = ".pack.lock"
STATE_VERSION = 1
DEFAULT_MAX_BAD_RATE = 0.01
IMAGES_PER_WORKER = 4096  # below this a process costs more to start than it saves
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

SOURCES: dict[str, Callable[[argparse.Namespace], Source]] = {
    "folder": lambda args: FolderSource(
        _required_path(args), nested_labels=args.nested_labels, name=args.name, licence=args.licence
    ),
    "digits": lambda args: DigitsSource(),
    "fashion-mnist": lambda args: FashionMnistSource(args.path),
}
EXAMPLES = """examples:
  python -m pipelines pack digits --classes 0-4 --holdout 0.2 --out data/digits_upstream
  python -m pipelines pack folder photos/ --out data/photos --holdout 0.1 --workers 8
  python -m pipelines pack folder clipart/ --nested-labels --out data/clipart
Killed at any moment, the same command goes on where it was; finished, it has nothing to do."""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    started = time.monotonic()
    options = _options(args)
    source = SOURCES[args.source](args)
    status, cards, notes = pack(source, options, args.out, num_workers=args.workers, max_bad_rate=args.max_bad_rate)
    result = _result(status, args.out, cards, time.monotonic() - started)
    if args.json:
        print(json.dumps(result))
    else:
        _print(result, notes)
    return 0


def pack(
    source: Source, options: PackOptions, out: Path, *, num_workers: int | None, max_bad_rate: float
) -> tuple[str, list[Card], list[str]]:
    """Packs ``source`` into ``out`` and returns ("packed" | "unchanged", one card per split, remarks).

    Raises:
        ConfigError: ``out`` holds something else.
        DataError: the source changed, or too many of its images are bad.
        SetupError: another process packs into ``out``.
    """
    items = source.items()
    plan = make_plan(items, source.classes, options)
    num_workers = num_workers or max(1, min(len(os.sched_getaffinity(0)), len(items) // IMAGES_PER_WORKER))
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _claim(out, options, plan)
        if all((out / split.name / TABLE_FILE).is_file() for split in plan.splits):
            return "unchanged", [_finished(out / split.name) for split in plan.splits], source.notes
        _write_shards(plan, source, out, num_workers, max_bad_rate)
        cards = [finish_split(out / split.name, split, plan, source, options) for split in plan.splits]
        (out / QUARANTINE_FILE).unlink(missing_ok=True)  # of an earlier run that found too many
    return "packed", cards, source.notes


def _write_shards(plan: Plan, source: Source, out: Path, num_workers: int, max_bad_rate: float) -> None:
    """Writes the shards that are not there yet, and counts the bad images of all of them."""
    limit = max_bad_rate * plan.num_items
    num_bad = done_before = 0
    tasks = []
    for split in plan.splits:
        folder = out / split.name
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
            leftover.unlink()
        for shard in split.shards:
            if is_done(folder, shard):
                done_before += len(shard.items)
                num_bad += len(quarantined_in(folder, [shard]))
            else:
                tasks.append((folder, shard))
    with LazyBar("packing", plan.num_items, "images") as bar:
        if num_bad <= limit:
            for bad in run_shards(tasks, source, num_workers, lambda done: bar.show(done_before + done)):
                num_bad += bad
                if num_bad > limit:
                    break
    if num_bad > limit:
        raise DataError(_too_many_bad(plan, out, num_bad, max_bad_rate))


def _too_many_bad(plan: Plan, out: Path, num_bad: int, max_bad_rate: float) -> str:
    entries = [
        {"split": split.name, **entry}
        for split in plan.splits
        for shard in split.shards
        if is_done(out / split.name, shard)
        for entry in quarantined_in(out / split.name, [shard])
    ]
    write_atomic(out / QUARANTINE_FILE, encode_lines(entries))
    kinds = ", ".join(f"{kind} × {count}" for kind, count in Counter(entry["kind"] for entry in entries).most_common())
    first = entries[0]
    return (
        f"at least {num_bad} of {plan.num_items} images cannot be used ({kinds}), more than --max-bad-rate "
        f"{max_bad_rate:g} allows. First: {first['source']} ({first['kind']}: {first['detail']}). All so far: "
        f"{out / QUARANTINE_FILE}. Mend or remove them, or run again with a higher --max-bad-rate"
    )


def _claim(out: Path, options: PackOptions, plan: Plan) -> None:
    """Makes ``out`` this pack's own, or checks that it is."""
    path = out / STATE_FILE
    state = {"version": STATE_VERSION, "options": options.to_dict(), "listing": plan.listing}
    if not path.is_file():
        others = sorted(
            entry.name
            for entry in out.iterdir()
            if entry.name != LOCK_FILE and not entry.name.startswith(f"{STATE_FILE}.")  # what a kill left
        )
        if others:
            raise ConfigError(f"--out {out} holds other files, such as {others[0]}; choose a new or empty folder")
        write_atomic(path, (json.dumps(state, indent=2) + "\n").encode())
        return
    found = json.loads(path.read_bytes())
    if found.get("version") != STATE_VERSION:
        raise ConfigError(f"{path} is of version {found.get('version')!r}; choose another --out or delete the folder")
    wanted, had = options.to_dict(), found["options"]
    differing = [
        f"{key}: {had.get(key)!r} then, {wanted.get(key)!r} now" for key in wanted if had.get(key) != wanted[key]
    ]
    if differing:
        raise ConfigError(
            f"{out} was packed with other options ({'; '.join(differing)}); choose another --out, or delete the folder"
        )
    if found["listing"] != plan.listing:
        raise DataError(
            f"the source has changed since {out} was begun (files came, went or have other sizes); choose another "
            "--out, or delete the folder"
        )


def _finished(folder: Path) -> Card:
    ShardTable.load(folder).check_files()
    return Card.load(folder)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel releases however this process ends."""
    path = out / LOCK_FILE
    while True:
        file = open(path, "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise SetupError(f"another process is packing into {out}; wait for it or choose another --out") from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder removed it between our two lines: that lock would exclude nobody
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines pack",
        description="Packs labelled images into WebDataset shards with an index and a data set card.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=sorted(SOURCES), help="kind of source")
    parser.add_argument("path", nargs="?", type=Path, help="folder: the root; fashion-mnist: where its IDX files are")
    parser.add_argument("--out", required=True, type=Path, help="folder to make; gets one sub-folder per split")
    parser.add_argument("--seed", type=int, default=0, help="seed of the global shuffle (0)")
    parser.add_argument("--workers", type=int, help="processes (one per core, fewer for a small set)")
    parser.add_argument("--shard-bytes", type=_num_bytes, default="256MB", help="largest size of a tar (256MB)")
    parser.add_argument("--shard-samples", type=int, default=10_000, help="most images in a tar (10000)")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of the training images that becomes val (0)")
    parser.add_argument("--classes", default="", help="only these: ids, names or ranges of indices, such as 0-4,7")
    parser.add_argument("--per-class", type=int, default=0, help="only so many training images of each class")
    parser.add_argument("--nested-labels", action="store_true", help="folder: every folder above a file is a label")
    parser.add_argument("--max-bad-rate", type=float, default=DEFAULT_MAX_BAD_RATE, help="share that may be bad (0.01)")
    parser.add_argument("--name", default="", help="name of the data set on its card")
    parser.add_argument("--licence", default="", help="folder: licence of the images on the card")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    return parser


def _options(args: argparse.Namespace) -> PackOptions:
    limits = {"seed": args.seed >= 0, "shard-samples": args.shard_samples >= 1}
    limits |= {"workers": args.workers is None or args.workers >= 1}
    limits |= {"shard-bytes": args.shard_bytes >= 1, "holdout": 0 <= args.holdout < 1, "per-class": args.per_class >= 0}
    limits |= {"max-bad-rate": 0 <= args.max_bad_rate <= 1}
    for name, is_allowed in limits.items():
        if not is_allowed:
            raise ConfigError(f"--{name} {getattr(args, name.replace('-', '_'))} is out of range; see --help")
    foreign = {"nested-labels": args.nested_labels, "licence": args.licence}
    for name, value in foreign.items():
        if value and args.source != "folder":
            raise ConfigError(f"--{name} belongs to the source folder; with {args.source} it would be ignored")
    if args.source == "digits" and args.path:
        raise ConfigError(f"the source digits takes no PATH; {args.path} would be ignored")
    names = set(PackOptions.__dataclass_fields__)
    return PackOptions(**{key: value for key, value in vars(args).items() if key in names})


def _required_path(args: argparse.Namespace) -> Path:
    if args.path is None:
        raise ConfigError(
            f"the source {args.source} needs a PATH: python -m pipelines pack {args.source} PATH --out DIR"
        )
    return args.path


def _num_bytes(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write a number and a unit, such as 256MB or 1GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _result(status: str, out: Path, cards: Sequence[Card], seconds: float) -> dict[str, Any]:
    keys = ("num_samples", "num_classes", "num_shards", "num_bytes", "max_labels", "quarantined", "index_digest")
    splits = {card.split: {key: getattr(card, key) for key in keys} for card in cards}
    return {"status": status, "out": str(out), "seconds": round(seconds, 2), "splits": splits}


def _print(result: dict[str, Any], notes: Sequence[str]) -> None:
    for split, row in result["splits"].items():
        bad = sum(row["quarantined"].values())
        print(
            f"{result['out']}/{split}: {row['num_samples']:,} images, {row['num_classes']:,} classes, "
            f"{row['num_shards']:,} shards, {row['num_bytes'] / 1e6:,.1f} MB" + (f", {bad} quarantined" if bad else "")
        )
    for note in notes:
        print(f"note: {note}")
    done = "nothing to do, packed before" if result["status"] == "unchanged" else "packed"
    print(f"{done} in {result['seconds']} s", file=sys.stdout)
