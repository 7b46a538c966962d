"""Makes a folder of finished shards into a data set: quarantine list, classes, card, and the index last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.pack.listing import About
from pipelines.pack.plan import PackOptions, Plan, Shard, Split
from pipelines.sources.protocol import Source
from pipelines.sources.vectors import Moments
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import CARD_FILE, CLASSES_FILE, READABLE_FILE, Card, encode_classes
from pretrain.data.storage.index import Records, ShardRow, ShardTable, records_name
from pretrain.files import digest, write_atomic
from pretrain.names import printable_in

QUARANTINE_FILE = "quarantine.jsonl"
NOT_ON_CARD = frozenset(["name", "licence", "release", "source"])  # said in fields of their own


def quarantined_in(folder: Path, shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """What was left out of finished shards, from their record files."""
    return [
        {"shard": shard.name, **entry}
        for shard in shards
        for entry in Records.open(folder / records_name(shard.name)).info["quarantined"]
    ]


def finish_split(
    folder: Path, split: Split, plan: Plan, source: About | Source, options: PackOptions, ledger: Ledger | None = None
) -> Card:
    """Writes everything beside the shards; index.json comes last and marks the split as whole.

    Args:
        folder: of the split.
        split: what was written there.
        plan: of the pack.
        source: the source's description of the data set.
        options: of the pack.
        ledger: where everything in the source went.
    """
    quarantined = quarantined_in(folder, split.shards)
    if quarantined:
        write_atomic(folder / QUARANTINE_FILE, encode_lines(quarantined))
    counted = Counts(len(plan.classes))
    rows = [counted.add(folder, shard.name) for shard in split.shards]
    is_labelled = plan.target == "labels"
    max_labels = counted.max_labels if is_labelled else 0
    table = ShardTable(folder, rows, num_classes=len(plan.classes), max_labels=max_labels, target=plan.target)
    classes = encode_classes(list(plan.classes))
    card = Card(
        name=options.name or source.name,
        split=split.name,
        source=source.origin,
        release=options.release or source.release,
        licence=options.licence or source.licence,
        homepage=source.homepage,
        num_samples=table.num_samples,
        num_classes=len(plan.classes),
        labels=_kind_of_labels(plan, source),
        max_labels=max_labels,
        num_shards=len(rows),
        num_bytes=sum(row.num_bytes for row in rows),
        split_rule=source.split_rule,
        held_out=plan.held_out,
        selection=plan.selection,
        lists=dict(source.lists),
        quarantined=dict(sorted(Counter(entry["kind"] for entry in quarantined).items())),
        dropped=plan.dropped,
        changed=dict(sorted(counted.changes.items())),
        short_sides={str(size): counted.short_sides[size] for size in sorted(counted.short_sides)},
        class_counts=[] if plan.target == "vector" else counted.classes.tolist(),
        target_mean=counted.moments.mean.tolist(),
        target_std=counted.moments.std.tolist(),
        options=_shown_options(options),
        ledger=ledger.accounts if ledger else {},
        shuffle_seed=options.seed,
        classes_digest=digest(classes),
        index_digest=table.digest,
    )
    write_atomic(folder / CLASSES_FILE, classes)
    write_atomic(folder / READABLE_FILE, card.to_markdown(list(plan.classes)))
    write_atomic(folder / CARD_FILE, card.to_json())
    table.save()
    return card


def _kind_of_labels(plan: Plan, source: About | Source) -> Literal["single", "multi", "vector", "mask"]:
    if plan.target == "labels":
        return "multi" if plan.multi_label or source.multi_label else "single"
    return plan.target


class Counts:
    """What a split's record files add up to.

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
    """Those that are not as they come."""
    plain = PackOptions(options.source).to_dict()
    return {key: value for key, value in _flat(options.to_dict()) if key not in NOT_ON_CARD and value != plain.get(key)}


def _flat(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value
