"""``python -m pipelines pack``: images → WebDataset shards with an index and a data set card.

OUT/pack.json             options and digest of the source's list: the same command goes on or has nothing to do
OUT/SPLIT/shard-*.tar     and the files beside them, see pretrain/data/storage/index.py and card.py

The tasks of an array (``--task 3/64``) share the shards of one OUT; ``pack merge OUT`` then finishes it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pack.arguments import PackRequest, parse
from pipelines.pack.checks import check_classes, reconcile, warnings
from pipelines.pack.contents import check_contents, finish_contents
from pipelines.pack.finish import QUARANTINE_FILE, encode_lines, finish_split, quarantined_in
from pipelines.pack.inputs import Inputs
from pipelines.pack.listing import About, digest_content, list_source, load_content, load_listing, prepare_units
from pipelines.pack.plan import PackOptions, Plan, Shard, make_plan
from pipelines.pack.shard import Writing, is_done, num_bad, write_shard
from pipelines.pack.state import State, Task, Work, locked, read_state, write_state
from pipelines.runs.pool import run_tasks
from pipelines.sources.file_patterns import STATE_FILE
from pipelines.sources.samples import SAMPLES
from pipelines.terminal.progress import LazyBar
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.errors import ConfigError, DataError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic
from pretrain.names import tell

IMAGES_PER_WORKER = 512  # below this a process costs more to start than it saves
DROPPED_FILE = "dropped.jsonl"
STATUS = {
    "packed": "packed",
    "unchanged": "nothing to do, packed before",
    "task": "task done; when all are: python -m pipelines pack merge",
    "merged": "merged",
}


@dataclass(frozen=True)
class Result:
    """What a run did: a key of ``STATUS``, one card per finished split, remarks."""

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
        is_shared = task is not None and state is not None and source.looks_at_files and not state.is_whole(out)
        fingerprint = state.fingerprint if state and is_shared else source.fingerprint()
        if state and fingerprint and state.fingerprint == fingerprint and state.is_whole(out):
            return Result("unchanged", _finished(out, state.splits), [])
        work = Work(out)
        plan, about, num_workers = _planned(request, work, fingerprint)
        splits, notes = [split.name for split in plan.splits], [*about.notes, *plan.notes]
        if state:
            state.check(plan.listing, out)
            is_whole = all((out / name / "index.json").is_file() for name in splits)
            if is_whole or fingerprint != state.fingerprint:
                notes += _compared(plan, request, num_workers)
                if state.splits and fingerprint != state.fingerprint:
                    write_state(out, options, plan.listing, fingerprint, splits)
            if is_whole:
                work.remove()
                return Result("unchanged", _finished(out, splits), notes)
            _refuse_old(state, out)
        else:
            write_state(out, options, plan.listing, fingerprint, splits)
        masks = options.of_masks(len(plan.classes))
        if request.allow_empty_classes and plan.target != "mask":
            raise ConfigError("--allow-empty-classes is about masks, which this source has not; leave it out")
        writing = Writing(source, options.of_images, plan.multi_label, plan.target, masks)
        _write_shards(plan, writing, request, num_workers)
        if task:
            return Result("task", [], notes)
        check_classes(out, plan, masks, allow_empty=request.allow_empty_classes)
        cards = _finish(plan, about, options, out, work)
        return Result("packed", cards, notes + warnings(plan, cards))


def merge(request: PackRequest) -> Result:
    """Finishes what the tasks of an array packed; the bytes are those of a pack by one machine.

    Raises:
        ConfigError: there is no such pack.
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
        _check_whole(plan, out, work.num_tasks)
        _check_rate(plan, out, request.max_bad_rate)
        masks = options.of_masks(len(plan.classes))
        check_classes(out, plan, masks, allow_empty=request.allow_empty_classes)
        cards = _finish(plan, about, options, out, work)
        return Result("merged", cards, [*about.notes, *plan.notes, *warnings(plan, cards)])


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
    _check_samples(about, request.max_bad_rate)
    source.classes = about.classes
    content = None
    if options.duplicates != "keep":
        content = digest_content(table, source, work, cores, task)
    kind = {"multi_label": about.multi_label, "target": about.target}
    plan = make_plan(table, about.classes, options, request.inputs.with_content(content), **kind)
    share = plan.num_items // (task.count if task else 1)
    return plan, about, request.num_workers or max(1, min(cores, share // IMAGES_PER_WORKER))


def _compared(plan: Plan, request: PackRequest, num_workers: int) -> list[str]:
    """Compares the source with what finished shards were packed from, and remarks where that is not known."""
    assert request.source is not None
    done = [(folder, shard) for folder, shard in _shares(plan, request.out, request.task) if is_done(folder, shard)]
    masked = plan.target == "mask"
    if check_contents(request.out, done, request.source, masked=masked, num_workers=num_workers):
        return []
    return ["an earlier version packed this set and noted no digests: whether pixels have changed is not known"]


def _check_samples(about: About, max_bad_rate: float) -> None:
    """Refuses a source too many of whose samples are broken before they could be listed."""
    account = about.ledger.accounts.get(SAMPLES)
    if account is None or account.num_lost <= max_bad_rate * account.found:
        return
    kinds = "; ".join(f"{reason} × {lost.count}, such as {lost.examples[0]}" for reason, lost in account.lost.items())
    raise DataError(
        f"{account.num_lost} of {account.found} samples cannot be used ({kinds}), more than --max-bad-rate "
        f"{max_bad_rate:g} allows. Correct the tars, or run again with a higher --max-bad-rate"
    )


def _finish(plan: Plan, about: About, options: PackOptions, out: Path, work: Work) -> list[Card]:
    for folder in (out, *(out / split.name for split in plan.splits)):
        _remove_leftovers(folder)
    if plan.duplicates is not None and len(plan.duplicates.copies):
        write_atomic(out / DROPPED_FILE, encode_lines(plan.duplicates.entries()))
    ledger = reconcile(out, plan, about)
    finish_contents(out, plan)
    cards = [finish_split(out / split.name, split, plan, about, options, ledger) for split in plan.splits]
    (out / QUARANTINE_FILE).unlink(missing_ok=True)  # of an earlier run that found too many
    work.remove()
    return cards


def _write_shards(plan: Plan, writing: Writing, request: PackRequest, num_workers: int) -> None:
    """Writes those shards of this task that are not there yet, and counts the bad images of all of them."""
    out, mine = request.out, list(_shares(plan, request.out, request.task))
    num_items = sum(len(shard.items) for _, shard in mine)
    limit = request.max_bad_rate * num_items
    bad = done_before = 0
    tasks: list[tuple[Path, Shard]] = []
    _clean(plan, out, mine, alone=request.task is None)
    for folder, shard in mine:
        if is_done(folder, shard):
            done_before += len(shard.items)
            bad += num_bad(quarantined_in(folder, [shard]))
        else:
            tasks.append((folder, shard))
    with LazyBar("packing", num_items, "images") as bar:
        if bad <= limit:
            num_workers = min(num_workers, len(tasks))
            for more in run_tasks(write_shard, tasks, writing, num_workers, lambda done: bar.show(done_before + done)):
                bad += more
                if bad > limit:
                    break
    if bad > limit:
        raise DataError(_too_many_bad(mine, out, num_items, request.max_bad_rate))


def _shares(plan: Plan, out: Path, task: Task | None) -> Iterator[tuple[Path, Shard]]:
    """(folder, shard) of a task, or of all: shard number k of the pack belongs to task k modulo their number."""
    shards = [(out / split.name, shard) for split in plan.splits for shard in split.shards]
    yield from shards[task.number - 1 :: task.count] if task else shards


def _clean(plan: Plan, out: Path, mine: Sequence[tuple[Path, Shard]], *, alone: bool) -> None:
    """Makes the folders and removes what a kill left half written; a task touches its own shards only."""
    for split in plan.splits:
        (out / split.name).mkdir(exist_ok=True)
        if alone:
            _remove_leftovers(out / split.name)
    if not alone:
        for folder, shard in mine:
            for leftover in folder.glob(f"{shard.name.removesuffix('.tar')}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """What a kill left half written; nobody else is writing there."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()


def _check_whole(plan: Plan, out: Path, num_tasks: int) -> None:
    """Refuses a merge before its time."""
    shards = list(_shares(plan, out, None))
    missing = [number for number, (folder, shard) in enumerate(shards) if not is_done(folder, shard)]
    if missing:
        tasks = sorted({number % num_tasks + 1 for number in missing})
        shown = ", ".join(f"{number}/{num_tasks}" for number in tasks[:16]) + (" …" if len(tasks) > 16 else "")
        raise DataError(
            f"{out}: {len(missing)} of {len(shards)} shards are missing; run again with --task {shown}, then merge"
        )


def _check_rate(plan: Plan, out: Path, max_bad_rate: float) -> None:
    shards = list(_shares(plan, out, None))
    if sum(num_bad(quarantined_in(folder, [shard])) for folder, shard in shards) > max_bad_rate * plan.num_items:
        raise DataError(_too_many_bad(shards, out, plan.num_items, max_bad_rate))


def _too_many_bad(shards: Sequence[tuple[Path, Shard]], out: Path, num_items: int, max_bad_rate: float) -> str:
    entries = [
        {"split": folder.name, **entry}
        for folder, shard in shards
        if is_done(folder, shard)
        for entry in quarantined_in(folder, [shard])
        if num_bad([entry])
    ]
    write_atomic(out / QUARANTINE_FILE, encode_lines(entries))
    kinds = ", ".join(f"{kind} × {count}" for kind, count in Counter(entry["kind"] for entry in entries).most_common())
    first = entries[0]
    return (
        f"at least {len(entries)} of {num_items} images cannot be used ({kinds}), more than --max-bad-rate "
        f"{max_bad_rate:g} allows. First: {first['source']} ({first['kind']}: {first['detail']}). All so far: "
        f"{out / QUARANTINE_FILE}. Fix or remove them, or run again with a higher --max-bad-rate"
    )


def _refuse_old(state: State, out: Path) -> None:
    if not state.splits:
        raise ConfigError(f"{out} was begun by an earlier version of the packer; delete the folder and pack again")


def _finished(out: Path, splits: Sequence[str]) -> list[Card]:
    for name in splits:
        ShardTable.load(out / name).check_files()
    return [Card.load(out / name) for name in splits]


def _result(result: Result, out: Path, seconds: float) -> dict[str, Any]:
    keys = (
        "num_samples",
        "num_classes",
        "num_shards",
        "num_bytes",
        "max_labels",
        "labels",
        "quarantined",
        "index_digest",
    )
    splits = {card.split: {key: getattr(card, key) for key in keys} for card in result.cards}
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
