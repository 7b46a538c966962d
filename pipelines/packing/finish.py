"""Makes a folder of finished shards into a data set: quarantine list, classes, card, and the index last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.packing.plan import PackOptions, Plan, Shard, Split
from pipelines.sources.protocol import Source
from pretrain.data.card import CARD_FILE, CLASSES_FILE, READABLE_FILE, Card, encode_classes
from pretrain.data.index import Records, ShardRow, ShardTable, records_name
from pretrain.files import digest, write_atomic

QUARANTINE_FILE = "quarantine.jsonl"


def quarantined_in(folder: Path, shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """What was left out of finished shards, from their record files."""
    return [
        {"shard": shard.name, **entry}
        for shard in shards
        for entry in Records.open(folder / records_name(shard.name)).info["quarantined"]
    ]


def finish_split(folder: Path, split: Split, plan: Plan, source: Source, options: PackOptions) -> Card:
    """Writes everything beside the shards; index.json comes last and marks the split as whole."""
    quarantined = quarantined_in(folder, split.shards)
    if quarantined:
        write_atomic(folder / QUARANTINE_FILE, encode_lines(quarantined))
    rows = [_row(folder, shard.name) for shard in split.shards]
    max_labels = max(len(item.labels) for item in split.items)
    table = ShardTable(folder, rows, num_classes=len(plan.classes), max_labels=max_labels)
    classes = encode_classes(list(plan.classes))
    card = Card(
        name=options.name or source.name,
        split=split.name,
        source=source.origin,
        licence=source.licence,
        homepage=source.homepage,
        num_samples=table.num_samples,
        num_classes=len(plan.classes),
        labels="multi" if source.multi_label else "single",
        max_labels=max_labels,
        num_shards=len(rows),
        num_bytes=sum(row.num_bytes for row in rows),
        held_out=plan.held_out,
        selection=plan.selection,
        quarantined=dict(sorted(Counter(entry["kind"] for entry in quarantined).items())),
        shuffle_seed=options.seed,
        classes_digest=digest(classes),
        index_digest=table.digest,
    )
    write_atomic(folder / CLASSES_FILE, classes)
    write_atomic(folder / READABLE_FILE, card.to_markdown())
    write_atomic(folder / CARD_FILE, card.to_json())
    table.save()
    return card


def encode_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _row(folder: Path, name: str) -> ShardRow:
    path = folder / records_name(name)
    records = Records.open(path)
    return ShardRow(name, len(records), records.info["num_bytes"], digest(path.read_bytes()))
