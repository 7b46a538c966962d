"""``python -m pipelines verify``: can these shards be trusted? Makes the index of those that have none.

Exit code 0: yes, perhaps with warnings; 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.runs.pool import run_tasks
from pipelines.sources.class_names import ClassList, class_list, read_class_names
from pipelines.sources.file_patterns import STATE_FILE, compressed_note, expand_braces, files_with, is_remote
from pipelines.sources.label_classes import FORMS, LabelOptions
from pipelines.sources.label_doubts import gaps_in_words
from pipelines.sources.protocol import NOT_STATED
from pipelines.sources.remote import RemoteFiles, add_options, place_of
from pipelines.sources.samples import SAMPLES
from pipelines.sources.splits import Place, splits_of_files, to_split_name
from pipelines.sources.vectors import Moments
from pipelines.terminal.progress import LazyBar
from pipelines.verify.correlation import label_correlation
from pipelines.verify.shards import Job, Report, check_shard
from pretrain.data.ledger import Account, Ledger
from pretrain.data.storage.card import CARD_FILE, CLASSES_FILE, READABLE_FILE, Card, encode_classes, load_classes
from pretrain.data.storage.card_checks import check_card
from pretrain.data.storage.index import TABLE_FILE, ShardRow, ShardTable
from pretrain.data.storage.location import Location
from pretrain.data.storage.shard_names import problem_of
from pretrain.data.storage.transport import Missing
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest, write_atomic
from pretrain.names import tell
from pretrain.outputs import check_output_folder
from pretrain.text_files import UTF8

EXAMPLES = """examples:
  python -m pipelines verify data/mine                       every split below it
  python -m pipelines verify /shards/imagenet/train --class-names synsets.txt
  python -m pipelines verify s3://bucket/mine/train          a packed set, wherever the stream reads from
  python -m pipelines verify 'https://host/set/train-{0000..0127}.tar' --out index/
Shards without an index get it: beside them where they are local, in --out where they are remote."""

MOST_NOTES = 8  # of the shards, about how labels were read


@dataclass
class Verdict:
    """What was found in one set.

    Attributes:
        where: the set.
        num_samples: that it has.
        num_shards: tars.
        made: files that were written.
        errors: what must be mended.
        warnings: what should be known.
        ledger: what became of everything in the folder and its shards.
    """

    where: str
    num_samples: int = 0
    num_shards: int = 0
    made: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True)
class Target:
    """One split: its tars' names, the folder of its index, where remote tars are, and what is beside local ones."""

    names: tuple[str, ...]
    folder: Path
    location: Location | None = None
    beside: Ledger = field(default_factory=Ledger, compare=False)

    def __str__(self) -> str:
        return str(self.location or self.folder)


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    if args.out is not None:
        check_output_folder(args.out)
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        verdicts = [verify(target, args) for target in _targets(args, Path(temporary))]
    if args.json:
        tell(json.dumps([vars(verdict) | {"ledger": verdict.ledger.to_dict()} for verdict in verdicts]))
    else:
        for verdict in verdicts:
            _print(verdict)
    return 1 if any(verdict.errors for verdict in verdicts) else 0


def verify(target: Target, args: argparse.Namespace) -> Verdict:
    """Checks one split, and makes its index where there is none."""
    verdict = Verdict(str(target), num_shards=len(target.names), ledger=target.beside)
    table = _table(target, verdict)
    if table is None and (problem := next(filter(None, map(problem_of, target.names)), "")):
        raise DataError(f"{target}: {problem}. Rename the tar, then verify again")
    if not (target.folder / CARD_FILE).is_file():
        _split(target, args)
    elif args.split:
        raise ConfigError(f"--split would be ignored: {target.folder / CARD_FILE} says what the split is")
    classes = _classes(target, args)
    job = Job(
        target.folder,
        target.location,
        RemoteFiles.of(args),
        classes,
        LabelOptions(args.labels_are, 0 if classes else args.num_classes),
        decode=not args.no_decode,
        stock=not args.no_webdataset,
    )
    rows = {row.name: row for row in table.rows} if table else {}
    reports = _run(target, job, rows, args.workers)
    verdict.warnings += compressed_note(verdict.ledger)
    for report in reports:
        verdict.ledger.merge(report.ledger)
        verdict.errors += [f"{report.name}: {problem}" for problem in report.problems]
        if report.num_problems > len(report.problems):
            verdict.errors.append(f"{report.name}: and {report.num_problems - len(report.problems)} more")
    verdict.num_samples = sum(report.row.num_samples for report in reports if report.row)
    verdict.warnings += sorted({note for report in reports for note in report.notes})[:MOST_NOTES]
    _check_labels(verdict, reports)
    _check_ledger(verdict, reports)
    unreadable = [report.name for report in reports if report.row is None]
    if table is None and unreadable:
        verdict.errors.append(
            f"no index is made while {len(unreadable)} shards cannot be read, such as {unreadable[0]}"
        )
    elif table is None:
        table = _make_index(target, reports, classes, args, verdict)
    if table is not None:
        _check_masks(table, reports, verdict)
        _check_card(target, table, reports, classes, args, verdict)
    return verdict


def _check_ledger(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Warns of samples that are left out. A shard that could not be read to its end is accounted for by its error."""
    samples = verdict.ledger.accounts.get(SAMPLES, Account())
    for reason, lost in samples.lost.items():
        verdict.warnings.append(f"samples are left out: {lost.count} ({reason}, such as {lost.examples[0]})")
    empty = [report.name for report in reports if report.row is not None and not report.row.num_samples]
    if empty:
        verdict.warnings.append(f"shards without a sample: {len(empty)}, such as {empty[0]}")
    if all(report.row is not None for report in reports):
        verdict.ledger.check(verdict.where)


def _run(target: Target, job: Job, rows: dict[str, ShardRow], workers: int | None) -> list[Report]:
    workers = min(workers or len(os.sched_getaffinity(0)), len(target.names))
    tasks = [(name, rows.get(name)) for name in target.names]
    with LazyBar("verifying", len(tasks), "shards") as bar:
        reports = {report.name: report for report in run_tasks(check_shard, tasks, job, workers, bar.show)}
    return [reports[name] for name in target.names]


def _table(target: Target, verdict: Verdict) -> ShardTable | None:
    if not (target.folder / TABLE_FILE).is_file():
        if (target.folder.parent / STATE_FILE).is_file() and not (target.folder / CARD_FILE).is_file():
            raise DataError(  # an index of what is there so far would make the pack look finished
                f"{target.folder} is not completely packed yet; run the same python -m pipelines pack … again (or pack "
                f"merge {target.folder.parent}), it goes on from there"
            )
        return None
    table = ShardTable.load(target.folder)
    indexed, there = {row.name for row in table.rows}, set(target.names)
    verdict.errors += [f"{name}: in {TABLE_FILE}, but not there" for name in sorted(indexed - there)]
    extra = sorted(there - indexed)
    if extra:
        raise DataError(
            f"{target}: {len(extra)} tars are not in {TABLE_FILE}, such as {extra[0]}; move them away, or delete "
            f"{target.folder / TABLE_FILE} to have it made anew for all of them"
        )
    return table


def _classes(target: Target, args: argparse.Namespace) -> ClassList | None:
    own = target.folder / CLASSES_FILE
    if own.is_file():
        if args.class_names and (target.folder / CARD_FILE).is_file():
            raise ConfigError(f"--class-names would be ignored: {own} says what the classes are")
        return class_list(load_classes(target.folder), str(own))
    return read_class_names(args.class_names, args.encoding) if args.class_names else None


def _check_labels(verdict: Verdict, reports: Sequence[Report]) -> None:
    found = label_correlation([report.labels for report in reports])
    if found is not None and found.is_ordered:
        verdict.warnings.append(
            f"the labels are not mixed along the shards: {found}. Shuffling while reading cannot mend that, and "
            "training on it goes wrong. Pack it again: python -m pipelines pack webdataset "
            f"{verdict.where} --out DIR"
        )


def _make_index(
    target: Target,
    reports: Sequence[Report],
    classes: ClassList | None,
    args: argparse.Namespace,
    verdict: Verdict,
) -> ShardTable:
    if not verdict.num_samples:
        lines = "\n  ".join(verdict.ledger.lines())
        raise DataError(f"{target}: no sample can be used. It holds:\n  {lines}")
    highest = max(max(report.highest, report.highest_in_masks) for report in reports)
    if classes and args.num_classes not in (0, len(classes.classes)):
        raise ConfigError(f"--num-classes {args.num_classes}, but {classes.where} names {len(classes.classes)} classes")
    num_classes = len(classes.classes) if classes else args.num_classes or highest + 1
    if highest >= num_classes:
        raise DataError(f"{target}: a label is {highest}, but there are {num_classes} classes")
    if min((int(report.labels.min(initial=0)) for report in reports), default=0) < 0:
        raise DataError(f"{target}: a label is below 0; samples without a class cannot be trained on")
    rows = [report.row for report in reports if report.row]
    if masks := sum(report.num_masks for report in reports):
        if masks < sum(row.num_samples for row in rows):
            raise DataError(f"{target}: only {masks} samples have a mask; index them apart")
        table = ShardTable(target.folder, rows, num_classes=num_classes, max_labels=0, target="mask")
    elif length := _vector_length(target, reports):
        table = ShardTable(target.folder, rows, num_classes=length, max_labels=0, target="vector")
    else:
        max_labels = max(report.max_labels for report in reports)
        if classes is None:
            seen = {int(label) for report in reports for label in np.unique(report.all_labels)}
            verdict.warnings += gaps_in_words(seen, num_classes, invented=not args.num_classes)
        table = ShardTable(target.folder, rows, num_classes=num_classes, max_labels=max_labels)
    table.save()
    verdict.made.append(TABLE_FILE)
    return table


def _vector_length(target: Target, reports: Sequence[Report]) -> int:
    """Numbers of each vector; 0: the samples have labels."""
    lengths = {len(report.moments.mean): report.name for report in reports if report.row and report.row.num_samples}
    if len(lengths) > 1:
        (one, first), (other, second), *_ = lengths.items()
        raise DataError(
            f"{target}: samples of {first} have targets of {one} numbers, of {second} {other} (0: labels); index them "
            "as two sets"
        )
    return next(iter(lengths), 0)


def _check_card(
    target: Target,
    table: ShardTable,
    reports: Sequence[Report],
    classes: ClassList | None,
    args: argparse.Namespace,
    verdict: Verdict,
) -> None:
    if not (target.folder / CARD_FILE).is_file():
        _write_card(target, table, reports, classes, args, verdict.ledger)
        verdict.made += [CARD_FILE, CLASSES_FILE]
        return
    try:
        check_card(Card.load(target.folder), table, str(target))
    except DataError as error:
        verdict.errors.append(str(error))


def _check_masks(table: ShardTable, reports: Sequence[Report], verdict: Verdict) -> None:
    """Masks that show no class of the set, or not all of them: mostly their numbers were taken for something else."""
    seen = {number for report in reports for number in report.mask_classes or ()}
    if table.target != "mask" or not any(report.mask_classes is not None for report in reports):
        return
    missing = [number for number in range(table.num_classes) if number not in seen]
    if not seen:
        verdict.errors.append("no pixel of the masks has a class: all are 255")
    elif max(seen) >= table.num_classes:
        verdict.errors.append(
            f"a pixel of a mask is {max(seen)}, but there are {table.num_classes} classes (255: none)"
        )
    if seen and missing:
        named = ", ".join(map(str, missing[:MOST_NOTES])) + (", …" if len(missing) > MOST_NOTES else "")
        verdict.warnings.append(
            f"{len(missing)} of {table.num_classes} classes occur in no mask: {named}. If they should, pack the masks "
            "again: pack reports the numbers that they are stored as"
        )


def _split(target: Target, args: argparse.Namespace) -> tuple[str, str]:
    """(split, rule in words) of shards without a card.

    Raises:
        DataError: they are of several splits, which one index would mix.
    """
    if args.split:
        return to_split_name(args.split, "--split"), "--split"
    root = str(target).rstrip("/").rpartition("/")[2]
    try:
        found = splits_of_files([Place(name, root) for name in target.names])
    except DataError as error:
        raise DataError(
            f"{target}: {error.args[0].partition(';')[0]}; say which split they are with --split"
        ) from error
    counts = Counter(found.names)
    if len(counts) > 1:
        shown = ", ".join(f"{count} of {split}" for split, count in counts.items())
        raise DataError(
            f"{target}: the shards are of several splits ({shown}), and an index is of one. Move each split into a "
            f"folder of its own, pack them (python -m pipelines pack webdataset {target} --out DIR), or say that all "
            "are one with --split"
        )
    return found.names[0], found.rule


def _write_card(
    target: Target,
    table: ShardTable,
    reports: Sequence[Report],
    classes: ClassList | None,
    args: argparse.Namespace,
    ledger: Ledger,
) -> None:
    """The card of a set that somebody else packed; says no more than what was seen."""
    known = list(classes.classes) if classes else []
    named = known + [(str(index), str(index)) for index in range(len(known), table.num_classes)]
    encoded = encode_classes(named)
    counts, moments = np.zeros(table.num_classes, dtype=np.int64), Moments()
    for report in reports:
        counts += np.bincount(report.labels, minlength=table.num_classes)
        moments.merge(report.moments)
    split, split_rule = _split(target, args)
    card = Card(
        name=args.name or target.folder.resolve().name,
        split=split,
        split_rule=split_rule,
        source=f"shards at {target}, indexed where they lie",
        release="",
        homepage="",
        held_out="",
        selection="",
        licence=args.licence or NOT_STATED,
        num_samples=table.num_samples,
        num_classes=table.num_classes,
        labels=("multi" if table.max_labels > 1 else "single") if table.target == "labels" else table.target,
        max_labels=table.max_labels,
        num_shards=len(table.rows),
        num_bytes=sum(row.num_bytes for row in table.rows),
        class_counts=counts.tolist() if table.max_labels == 1 else [],
        target_mean=moments.mean.tolist(),
        target_std=moments.std.tolist(),
        ledger=ledger.accounts,
        shuffle_seed=0,
        classes_digest=digest(encoded),
        index_digest=table.digest,
    )
    write_atomic(target.folder / CLASSES_FILE, encoded)
    write_atomic(target.folder / READABLE_FILE, card.to_markdown(named))
    write_atomic(target.folder / CARD_FILE, card.to_json())


def _targets(args: argparse.Namespace, temporary: Path) -> list[Target]:
    targets, remote = [], RemoteFiles.of(args)
    for number, place in enumerate(args.places):
        if not is_remote(place):
            targets += _local_targets(Path(place), args.out)
        elif ".tar" in place:
            targets.append(_remote_tars(place, args.out, remote))
        else:
            targets.append(_remote_set(place, args.out or temporary / str(number), remote))
    return targets


def _local_targets(place: Path, out: Path | None) -> list[Target]:
    if out is not None:
        raise ConfigError(f"--out is for remote shards; the index of {place} goes beside them")
    if place.suffix.lower() == ".tar":
        raise ConfigError(f"{place}: give the folder: a set is indexed as a whole")
    if not place.is_dir():
        raise DataError(f"{place} is not a folder")
    targets = [_target(folder) for folder in (place, *sorted(entry for entry in place.iterdir() if entry.is_dir()))]
    targets = targets[:1] if targets[0].names else [target for target in targets if target.names]
    if not targets:
        raise DataError(f"{place} holds no .tar, and neither do its folders")
    return targets


def _target(folder: Path) -> Target:
    """The tars of one folder, not those of folders below."""
    ledger = Ledger()
    names = [Path(path).name for path in files_with(folder, ".tar", ledger, deep=False)]
    return Target(tuple(names), folder, beside=ledger)


def _remote_tars(pattern: str, out: Path | None, remote: RemoteFiles) -> Target:
    """Tars that are named one by one; their index goes into ``out``."""
    if out is None:
        raise ConfigError("--out DIR is missing: where the index of remote shards is put, to be copied beside them")
    places = [place_of(url) for url in expand_braces(pattern)]
    locations = sorted({str(location) for location, _ in places})
    if len(locations) > 1:
        raise ConfigError(f"{pattern} names several places ({', '.join(locations[:3])}); a set is indexed as a whole")
    location = places[0][0]
    remote.check(location)
    out.mkdir(parents=True, exist_ok=True)
    return Target(tuple(name for _, name in places), out, location)


def _remote_set(place: str, folder: Path, remote: RemoteFiles) -> Target:
    """A set that has its index: that is fetched into ``folder``."""
    location = Location.parse(place)
    remote.check(location)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TABLE_FILE, CARD_FILE, CLASSES_FILE):
        try:
            remote.fetch(location, name, folder / name)
        except Missing as error:
            (folder / name).unlink(missing_ok=True)
            raise DataError(
                f"{error}. Shards without index and card get them by naming the tars: python -m pipelines verify "
                f"'{location.url('shard-{000000..000127}.tar')}' --out index/"
            ) from error
    return Target(tuple(row.name for row in ShardTable.load(folder).rows), folder, location)


def _print(verdict: Verdict) -> None:
    state = "WRONG" if verdict.errors else "ok, with warnings" if verdict.warnings else "ok"
    tell(f"{verdict.where}: {verdict.num_samples:,} samples in {verdict.num_shards:,} shards: {state}")
    for line in verdict.ledger.lines():
        tell(f"  {line}")
    if verdict.made:
        tell(f"  made: {', '.join(verdict.made)}")
    for kind, lines in (("error", verdict.errors), ("warning", verdict.warnings)):
        for line in lines:
            tell(f"  {kind}: {line}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines verify",
        description="Reads shards to their end: checksums, decoding, index, stock webdataset, and order of labels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("places", nargs="+", metavar="DIR_OR_URL", help="folder of a split, or of splits; URL; URLs of tars")
    add("--out", type=Path, help="remote shards: folder for their index, to be copied beside them")
    add("--class-names", type=Path, metavar="FILE", help="a class per line; default: classes.csv")
    add("--encoding", default=UTF8, help="of the class names and labels, without a byte-order mark (utf-8)")
    add("--num-classes", type=int, default=0, help="width of the label space of a new index (largest label + 1)")
    add("--labels-are", choices=FORMS, default="", help="what labels are where they could be several things")
    add("--split", default="", help="which split shards without a card are (what their names say)")
    add("--name", default="", help="name on a new card")
    add("--licence", default="", help="licence on a new card")
    add_options(add)
    add("--no-decode", action="store_true", help="do not decode every image")
    add("--no-webdataset", action="store_true", help="do not read with stock webdataset too")
    add("--workers", type=int, help="processes (one per core)")
    add("--json", action="store_true", help="print the result as JSON")
    return parser
