"""``python -m pipelines verify``: are these shards valid? Makes the index of those that have none. Also checkpoints.

Exit code 0: yes, perhaps with warnings; 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.runs.processes import run_tasks
from pipelines.runs.run_record import CONFIG, find_runs, runs_of
from pipelines.sources.class_names import ClassList, class_list, read_class_names
from pipelines.sources.file_patterns import compressed_note, is_remote
from pipelines.sources.label_classes import LabelOptions
from pipelines.sources.options import CLASS_NAMES, ENCODING, LABELS_ARE, NUM_CLASSES
from pipelines.sources.remote import OPTIONS as REMOTE_OPTIONS
from pipelines.sources.remote import RemoteFiles
from pipelines.terminal.arguments import add_json, add_workers, stage_parser
from pipelines.terminal.output import LazyBar
from pipelines.verify.index import Indexing, Stated, split_of
from pipelines.verify.shards import check_shard
from pipelines.verify.targets import Target, targets_of
from pipelines.verify.verdict import (
    Job,
    Report,
    Verdict,
    check_card,
    check_labels,
    check_ledger,
    check_masks,
    known_table,
)
from pretrain.command_line import Parser, check_output_folder
from pretrain.data.storage.card import CARD_FILE
from pretrain.data.storage.classes import CLASSES_FILE, load_classes
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.data.storage.index_checks import problem_of
from pretrain.errors import ConfigError, DataError
from pretrain.names import tell

EXAMPLES = """examples:
  python -m pipelines verify data/mine                       every split below it
  python -m pipelines verify runs/mine                       the checkpoints of a run, and their copies in its mirror
  python -m pipelines verify /shards/imagenet/train --class-names synsets.txt
  python -m pipelines verify s3://bucket/mine/train          a packed set, anywhere that training can read from
  python -m pipelines verify 'https://host/set/train-{0000..0127}.tar' --out index/
Shards without an index get one: next to local shards, in --out for remote ones."""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    if runs := [Path(place) for place in args.places if not is_remote(place) and _has_runs(Path(place))]:
        return _verify_runs(args, runs)
    if args.out is not None:
        check_output_folder(args.out)
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        targets = targets_of(args.places, args.out, RemoteFiles.of(args), Path(temporary))
        verdicts = [verify(target, args) for target in targets]
    if args.json:
        tell(json.dumps([vars(verdict) | {"ledger": verdict.ledger.to_dict()} for verdict in verdicts]))
    else:
        for verdict in verdicts:
            _print(verdict)
    return 1 if any(verdict.errors for verdict in verdicts) else 0


def _has_runs(place: Path) -> bool:
    """Whether a folder is a run that has begun, or has such runs. (A folder of shards may have a log.txt.)"""
    return any((run / CONFIG).is_file() for run in find_runs(place))


def _verify_runs(args: argparse.Namespace, runs: Sequence[Path]) -> int:
    """Checks the checkpoints of runs; returns the exit code."""
    from pipelines.verify.checkpoints import check_checkpoints  # imports torch

    if len(runs) != len(args.places):
        raise ConfigError(f"{runs[0]} is a run, and other places are not; verify runs and shards separately")
    alone = parser().parse_args([*args.places, *(["--json"] if args.json else [])])
    if ignored := [name for name, value in vars(args).items() if value != getattr(alone, name)]:
        raise ConfigError(f"--{ignored[0].replace('_', '-')} is for shards; {runs[0]} is a run: leave it out")
    found = [check_checkpoints(run) for run in runs_of(runs)]
    if args.json:
        tell(json.dumps([one.to_dict() for one in found]))
    else:
        tell("\n".join(line for one in found for line in one.lines()))
    return 1 if any(one.errors for one in found) else 0


def verify(target: Target, args: argparse.Namespace) -> Verdict:
    """Checks one split, and makes its index where there is none.

    Raises:
        ConfigError: an option would be ignored. DataError: the shards cannot be indexed as they are.
    """
    verdict = Verdict(str(target), num_shards=len(target.names), ledger=target.beside)
    table = known_table(target, verdict)
    if table is None and (problem := next(filter(None, map(problem_of, target.names)), "")):
        raise DataError(f"{target}: {problem}. Rename the tar, then verify again")
    if not (target.folder / CARD_FILE).is_file():
        verdict.warnings += split_of(target, args.split).notes
    elif args.split:
        raise ConfigError(f"--split would be ignored: {target.folder / CARD_FILE} defines the split")
    classes = _classes(target, args)
    reports = _reports(target, args, classes, table)
    verdict.warnings += compressed_note(verdict.ledger)
    verdict.add(reports)
    check_labels(verdict, reports)
    check_ledger(verdict, reports)
    indexing = Indexing(target, reports, classes, Stated(args.name, args.licence, args.split, args.num_classes))
    if table is None:
        table = _new_table(indexing, verdict)
    if table is not None:
        check_masks(table, reports, verdict)
        if (target.folder / CARD_FILE).is_file():
            check_card(target, table, verdict)
        else:
            indexing.card(table, verdict.ledger)
            verdict.made += [CARD_FILE, CLASSES_FILE]
    return verdict


def _reports(
    target: Target, args: argparse.Namespace, classes: ClassList | None, table: ShardTable | None
) -> list[Report]:
    """Of every shard, in the order of their names."""
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
    tasks = [(name, rows.get(name)) for name in target.names]
    workers = min(args.workers or len(os.sched_getaffinity(0)), len(tasks))
    with LazyBar("verifying", len(tasks), "shards") as bar:
        reports = {report.name: report for report in run_tasks(check_shard, tasks, job, workers, bar.show)}
    return [reports[name] for name in target.names]


def _new_table(indexing: Indexing, verdict: Verdict) -> ShardTable | None:
    """The index of a set that has none; None: a shard cannot be read."""
    unreadable = [report.name for report in indexing.reports if report.row is None]
    if unreadable:
        verdict.errors.append(
            f"no index is made while {len(unreadable)} shards cannot be read, such as {unreadable[0]}"
        )
        return None
    if not verdict.num_samples:
        lines = "\n  ".join(verdict.ledger.lines())
        raise DataError(f"{indexing.target}: no sample can be used. It holds:\n  {lines}")
    table, remarks = indexing.table()
    verdict.warnings += remarks
    verdict.made.append(TABLE_FILE)
    return table


def _classes(target: Target, args: argparse.Namespace) -> ClassList | None:
    own = target.folder / CLASSES_FILE
    if own.is_file():
        if args.class_names and (target.folder / CARD_FILE).is_file():
            raise ConfigError(f"--class-names would be ignored: {own} defines the classes")
        return class_list(load_classes(target.folder), str(own))
    return read_class_names(args.class_names, args.encoding) if args.class_names else None


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


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "verify",
        "Reads shards to their end (checksums, decoding, index, stock webdataset, order of labels), or checkpoints.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("places", nargs="+", metavar="DIR_OR_URL", help="folder of a split, or of splits; URL; URLs of tars; run")
    add("--out", type=Path, help="remote shards: folder for their index, to be copied next to them")
    for option in (CLASS_NAMES, ENCODING, NUM_CLASSES, LABELS_ARE):
        option.declare(add)
    add("--split", default="", help="split of shards without a card (default: from their names)")
    add("--name", default="", help="name on a new card")
    add("--licence", default="", help="licence on a new card")
    for option in REMOTE_OPTIONS:
        option.declare(add)
    add("--no-decode", action="store_true", help="do not decode every image")
    add("--no-webdataset", action="store_true", help="skip the check with stock webdataset")
    add_workers(parser)
    add_json(parser, "the result as JSON")
    return parser
