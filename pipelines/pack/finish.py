"""Makes a folder of finished shards into a data set: quarantine list, classes, card, and the index last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.pack.checks import reconcile
from pipelines.pack.contents import finish_contents
from pipelines.pack.listing import About
from pipelines.pack.options import PackOptions
from pipelines.pack.plan import Plan, Shard, Split
from pipelines.sources.protocol import Source
from pipelines.sources.vectors import Moments
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import encode_classes
from pretrain.data.storage.index import ShardRow, ShardTable
from pretrain.data.storage.records import Records, records_name
from pretrain.files import TEMPORARY_SUFFIX, digest, write_atomic
from pretrain.names import printable_in

QUARANTINE_FILE = "quarantine.jsonl"
DROPPED_FILE = "dropped.jsonl"
NOT_ON_CARD = frozenset(["name", "licence", "release", "source"])  # these have their own fields


def quarantined_in(folder: Path, shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """The images that were left out of finished shards, from their record files."""
    return [
        {"shard": shard.name, **entry}
        for shard in shards
        for entry in Records.open(folder / records_name(shard.name)).info["quarantined"]
    ]


def finish(out: Path, plan: Plan, about: About, options: PackOptions) -> list[Card]:
    """Completes a pack after all shards have been written; returns the card of each split.

    Raises:
        DataError: the ledger does not add up.
    """
    for folder in (out, *(out / split.name for split in plan.splits)):
        remove_leftovers(folder)
    if plan.duplicates is not None and len(plan.duplicates.copies):
        write_atomic(out / DROPPED_FILE, encode_lines(plan.duplicates.entries()))
    ledger = reconcile(out, plan, about)
    finish_contents(out, plan)
    cards = [finish_split(out / split.name, split, plan, about, options, ledger) for split in plan.splits]
    (out / QUARANTINE_FILE).unlink(missing_ok=True)  # from an earlier run that found too many
    return cards


def finish_split(
    folder: Path, split: Split, plan: Plan, source: About | Source, options: PackOptions, ledger: Ledger | None = None
) -> Card:
    """Writes the other files next to the shards of ``split``; index.json comes last and marks the split as complete.

    Args:
        folder: of the split.
        split: one of those of ``plan``.
        plan: of the pack.
        source: describes the data set.
        options: of the pack.
        ledger: accounts for everything in the source.
    """
    if quarantined := quarantined_in(folder, split.shards):
        write_atomic(folder / QUARANTINE_FILE, encode_lines(quarantined))
    counted = Counts(len(plan.classes))
    rows = [counted.add(folder, shard.name) for shard in split.shards]
    max_labels = counted.max_labels if plan.target == "labels" else 0
    table = ShardTable(folder, rows, num_classes=len(plan.classes), max_labels=max_labels, target=plan.target)
    card = Card(
        split=split.name,
        num_classes=len(plan.classes),
        labels=_kind_of_labels(plan, source),
        max_labels=max_labels,
        held_out=plan.held_out,
        selection=plan.selection,
        quarantined=_kinds(quarantined),
        dropped=plan.dropped,
        class_counts=[] if plan.target == "vector" else counted.classes.tolist(),
        ledger=ledger.accounts if ledger else {},
        classes_digest=digest(encode_classes(list(plan.classes))),
        index_digest=table.digest,
        **counted.on_card(),
        **_totals(table),
        **_described(source, options),
    )
    card.save(folder, list(plan.classes))
    table.save()
    return card


def remove_leftovers(folder: Path) -> None:
    """Removes partly written files; no other process may be writing into the folder."""
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()


def _totals(table: ShardTable) -> dict[str, int]:
    num_bytes = sum(row.num_bytes for row in table.rows)
    return {"num_samples": table.num_samples, "num_shards": len(table.rows), "num_bytes": num_bytes}


def _kinds(quarantined: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(entry["kind"] for entry in quarantined).items()))


def _described(source: About | Source, options: PackOptions) -> dict[str, Any]:
    """The fields of a card that describe what was packed, as given by the source or the user."""
    return {
        "name": options.name or source.name,
        "source": source.origin,
        "release": options.release or source.release,
        "licence": options.licence or source.licence,
        "homepage": source.homepage,
        "split_rule": source.split_rule,
        "lists": dict(source.lists),
        "options": _shown_options(options),
        "shuffle_seed": options.seed,
    }


def _kind_of_labels(plan: Plan, source: About | Source) -> Literal["single", "multi", "vector", "mask"]:
    if plan.target == "labels":
        return "multi" if plan.multi_label or source.multi_label else "single"
    return plan.target


class Counts:
    """The sums over the record files of a split.

    Attributes:
        classes: int64 (C,), images that have each class.
        max_labels: the most labels that one image has.
        short_sides: lower end of a bucket → images.
        changes: what was changed → images.
        moments: of the vectors.
    """

    def __init__(self, num_classes: int) -> None:
        self.classes = np.zeros(num_classes, dtype=np.int64)
        self.max_labels = 1
        self.short_sides: Counter[int] = Counter()
        self.changes: Counter[str] = Counter()
        self.moments = Moments()

    def on_card(self) -> dict[str, Any]:
        """The fields of a card that are counts."""
        return {
            "changed": dict(sorted(self.changes.items())),
            "short_sides": {str(size): self.short_sides[size] for size in sorted(self.short_sides)},
            "target_mean": self.moments.mean.tolist(),
            "target_std": self.moments.std.tolist(),
        }

    def add(self, folder: Path, name: str) -> ShardRow:
        """Counts one shard and returns its row of the table."""
        path = folder / records_name(name)
        records = Records.open(path)
        labels, starts = records.columns["labels"], records.columns["label_starts"]
        self.classes += np.bincount(labels, minlength=len(self.classes))
        self.max_labels = max(self.max_labels, int(np.diff(starts).max(initial=0)))
        self.short_sides.update({int(size): count for size, count in records.info.get("short_sides", {}).items()})
        self.changes.update(records.info.get("changes", {}))
        for number, count in records.info.get("mask_classes", {}).items():
            self.classes[int(number)] += count
        if "vectors" in records.columns:
            self.moments.add(records.vectors)
        return ShardRow(name, len(records), records.info["num_bytes"], digest(path.read_bytes()))


def encode_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(printable_in(entry)) + "\n" for entry in entries).encode()


def _shown_options(options: PackOptions) -> dict[str, Any]:
    """The options with a value other than the default."""
    plain = PackOptions(options.source).to_dict()
    return {key: value for key, value in _flat(options.to_dict()) if key not in NOT_ON_CARD and value != plain.get(key)}


def _flat(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value
