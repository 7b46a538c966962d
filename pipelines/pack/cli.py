"""``python -m pipelines pack``: images → WebDataset shards with an index and a data set card.

OUT/pack.json             options and digest of the source's list: rerun the same command to resume
OUT/SPLIT/shard-*.tar     and the files next to them, see pretrain/data/storage/index.py and card.py

The tasks of an array (``--task 3/64``) share the shards of one OUT; ``pack merge OUT`` then finishes it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pack.arguments import PackRequest, parse
from pipelines.pack.arguments import parser as parser  # the command line of the stage
from pipelines.pack.contents import check_contents
from pipelines.pack.finish import check_classes, check_samples, finish, warnings
from pipelines.pack.listing import About, digest_content, list_source, load_content, load_listing, prepare_units
from pipelines.pack.options import Inputs
from pipelines.pack.plan import Plan, make_plan
from pipelines.pack.shards import Shares, Writing
from pipelines.pack.state import State, Work, locked, read_state, write_state
from pipelines.sources.file_patterns import STATE_FILE
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.errors import ConfigError
from pretrain.names import tell

IMAGES_PER_WORKER = 512  # with fewer, a process costs more to start than it saves
STATUS = {
    "packed": "packed",
    "unchanged": "nothing to do, packed before",
    "task": "task done; when all are: python -m pipelines pack merge",
    "merged": "merged",
}
OF_SPLIT = (
    "num_samples",
    "num_classes",
    "num_shards",
    "num_bytes",
    "max_labels",
    "labels",
    "quarantined",
    "index_digest",
)


@dataclass(frozen=True)
class Result:
    """The outcome of a run: a key of ``STATUS``, one card per finished split, and notes."""

    status: str
    cards: list[Card]
    notes: list[str]


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    started = time.monotonic()
    request = parse(argv)
    result = merge(request) if request.is_merge else pack(request)
    shown = _result(result, request.out, time.monotonic() - started)
    if request.json:
        tell(json.dumps(shown))
    else:
        _print(shown)
    return 0


def pack(request: PackRequest) -> Result:
    """Packs a source into ``request.out``, or one task's share of it.

    Raises:
        ConfigError: ``out`` holds something else.
        DataError: the source changed, or too many of its images are bad.
        SetupError: another process packs into ``out``.
    """
    source, options, out, task = request.source, request.options, request.out, request.task
    assert source is not None
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, together=task is not None):
        state = read_state(out, options)
        fingerprint = _fingerprint(request, state)
        if state and fingerprint and state.fingerprint == fingerprint and state.is_whole(out):
            return Result("unchanged", _finished(out, state.splits), [])
        work = Work(out)
        plan, about, num_workers = _planned(request, work, fingerprint)
        shares = Shares(plan, out, request.max_bad_rate, task)
        notes = [*about.notes, *plan.notes, *_begun(request, state, shares, fingerprint, num_workers)]
        if state and _has_tables(plan, out):
            work.remove()
            return Result("unchanged", _finished(out, [split.name for split in plan.splits]), notes)
        masks = options.of_masks(len(plan.classes))
        if request.allow_empty_classes and plan.target != "mask":
            raise ConfigError("--allow-empty-classes is about masks, but this source has none; leave it out")
        shares.write(Writing(source, options.of_images, plan.multi_label, plan.target, masks), num_workers)
        if task:
            return Result("task", [], notes)
        check_classes(out, plan, masks, allow_empty=request.allow_empty_classes)
        cards = finish(out, plan, about, options)
        work.remove()
        return Result("packed", cards, notes + warnings(plan, cards))


def merge(request: PackRequest) -> Result:
    """Finishes a pack by the tasks of an array; the bytes are the same as those of a pack by one machine.

    Raises:
        ConfigError: the folder does not contain an unfinished pack.
        DataError: shards are missing; names the tasks to run again.
    """
    out = request.out
    if not (out / STATE_FILE).is_file():
        raise ConfigError(f"{out} holds no {STATE_FILE}: no task has packed into it yet")
    with locked(out):
        state = read_state(out, None)
        assert state is not None
        options = state.pack_options(out)
        work = Work(out)
        if state.is_whole(out):
            work.remove()
            return Result("unchanged", _finished(out, state.splits), [])
        if not work.num_tasks:
            raise ConfigError(f"{out} was not begun with --task; run the command that began it again")
        table, about = load_listing(work)
        inputs = Inputs.kept_in(work.folder)
        content = load_content(table, work) if options.duplicates != "keep" else None
        kind = {"multi_label": about.multi_label, "target": about.target}
        plan = make_plan(table, about.classes, options, inputs.with_content(content), **kind)
        shares = Shares(plan, out, request.max_bad_rate)
        shares.check_complete(work.num_tasks)
        shares.check_rate()
        masks = options.of_masks(len(plan.classes))
        check_classes(out, plan, masks, allow_empty=request.allow_empty_classes)
        cards = finish(out, plan, about, options)
        work.remove()
        return Result("merged", cards, [*about.notes, *plan.notes, *warnings(plan, cards)])


def _fingerprint(request: PackRequest, state: State | None) -> str:
    """The source's fingerprint. Tasks of an array use the first task's if computing it means checking every file."""
    assert request.source is not None
    if request.task and state and request.source.looks_at_files and not state.is_whole(request.out):
        return state.fingerprint
    return request.source.fingerprint()


def _planned(request: PackRequest, work: Work, fingerprint: str) -> tuple[Plan, About, int]:
    source, options, task = request.source, request.options, request.task
    assert source is not None
    cores = request.num_workers or len(os.sched_getaffinity(0))
    needs_work = bool(source.units()) or options.duplicates != "keep" or task is not None
    if needs_work:
        work.begin(options, fingerprint, task)
        request.inputs.keep(work.folder)
    prepare_units(source, work, cores, task)
    table, about = list_source(source, work, task)
    check_samples(about, request.max_bad_rate)
    source.classes = about.classes
    content = None
    if options.duplicates != "keep":
        content = digest_content(table, source, work, cores, task)
    kind = {"multi_label": about.multi_label, "target": about.target}
    plan = make_plan(table, about.classes, options, request.inputs.with_content(content), **kind)
    share = plan.num_items // (task.count if task else 1)
    return plan, about, request.num_workers or max(1, min(cores, share // IMAGES_PER_WORKER))


def _begun(
    request: PackRequest, state: State | None, shares: Shares, fingerprint: str, num_workers: int
) -> Sequence[str]:
    """Writes pack.json, or compares the source with the one that an earlier run packed; returns notes.

    Raises:
        ConfigError: an earlier version of the packer began the folder.
        DataError: the source has changed.
    """
    plan, out, notes = shares.plan, request.out, []
    splits = [split.name for split in plan.splits]
    if state is None:
        write_state(out, request.options, plan.listing, fingerprint, splits)
        return notes
    state.check(plan.listing, out)
    is_whole = _has_tables(plan, out)
    if is_whole or fingerprint != state.fingerprint:
        assert request.source is not None
        masked = plan.target == "mask"
        if not check_contents(out, shares.done, request.source, masked=masked, num_workers=num_workers):
            notes = ["an earlier version packed this set and noted no digests: whether pixels have changed is unknown"]
        if state.splits and fingerprint != state.fingerprint:
            write_state(out, request.options, plan.listing, fingerprint, splits)
    if not is_whole and not state.splits:
        raise ConfigError(f"{out} was begun by an earlier version of the packer; delete the folder and pack again")
    return notes


def _has_tables(plan: Plan, out: Path) -> bool:
    return all((out / split.name / TABLE_FILE).is_file() for split in plan.splits)


def _finished(out: Path, splits: Sequence[str]) -> list[Card]:
    for name in splits:
        ShardTable.load(out / name).check_files()
    return [Card.load(out / name) for name in splits]


def _result(result: Result, out: Path, seconds: float) -> dict[str, Any]:
    splits = {card.split: {key: getattr(card, key) for key in OF_SPLIT} for card in result.cards}
    rules = list(dict.fromkeys(card.split_rule for card in result.cards if card.split_rule))
    ledger = Ledger(result.cards[0].ledger) if result.cards else Ledger()
    return {
        "status": result.status,
        "out": str(out),
        "seconds": round(seconds, 2),
        "splits": splits,
        "split_rule": "; ".join(rules),
        "ledger": ledger.to_dict(),
        "notes": result.notes,
    }


def _what(labels: str) -> str:
    return "numbers each" if labels == "vector" else "classes"


def _print(result: dict[str, Any]) -> None:
    for split, row in result["splits"].items():
        bad = sum(row["quarantined"].values())
        tell(
            f"{result['out']}/{split}: {row['num_samples']:,} images, {row['num_classes']:,} {_what(row['labels'])}, "
            f"{row['num_shards']:,} shards, {row['num_bytes'] / 1e6:,.1f} MB" + (f", {bad} quarantined" if bad else "")
        )
    if result["split_rule"]:
        tell(f"splits: {result['split_rule']}")
    for line in Ledger.of_dict(result["ledger"]).lines():
        tell(line)
    for note in result["notes"]:
        tell(f"note: {note}")
    after = f" {result['out']}" if result["status"] == "task" else ""
    tell(f"{STATUS[result['status']]}{after} in {result['seconds']} s")
