"""The ledger of a pack: what the source held, what the plan left out, and what the record files say was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.pack.left_out import IMAGES, LABELS, OF_LOST_IMAGE
from pipelines.pack.listing import About
from pipelines.pack.plan import Plan, Shard
from pipelines.sources.protocol import Source
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import Records, records_name
from pretrain.names import parsed, shown
from pretrain.redaction import redacted


def reconcile(out: Path, plan: Plan, source: About | Source) -> Ledger:
    """The accounts of the source, of its images and of their labels.

    Raises:
        DataError: they do not add up.
    """
    ledger = Ledger()
    for other in (source.ledger, plan.ledger):
        ledger.merge(other)
    for split in plan.splits:
        for shard in split.shards:
            _add_shard(ledger, out / split.name, shard, plan, split.name)
    ledger.check(out)
    return ledger


def warnings(plan: Plan, cards: Sequence[Card]) -> list[str]:
    """What a person should know of a finished pack, though all of it is right as far as it was told."""
    found = []
    if plan.repeated:
        found.append(f"{plan.repeated:,} images have one label more than once")
    counts = [card.class_counts for card in cards if card.class_counts]
    empty = [name for (_, name), *of_class in zip(plan.classes, *counts, strict=True) if counts and not any(of_class)]
    if empty:
        some = ", ".join(empty[:MOST_EXAMPLES]) + (", …" if len(empty) > MOST_EXAMPLES else "")
        found.append(f"{len(empty):,} of {len(plan.classes):,} classes have no image: {some}")
    return found


def _add_shard(ledger: Ledger, folder: Path, shard: Shard, plan: Plan, split: str) -> None:
    records = Records.open(folder / records_name(shard.name))
    ledger.used(IMAGES, f"in {split}", len(records))
    quarantined = records.info["quarantined"]
    for entry in quarantined:
        ledger.lost(IMAGES, entry["kind"], parsed(entry["source"]))
    if plan.target != "labels":
        return
    ledger.used(LABELS, f"in {split}", len(records.columns["labels"]))
    if quarantined:
        gone = {entry["source"] for entry in quarantined}  # without credentials, as they were written
        lost = sum(len(item.labels) for item in shard.items if redacted(shown(item.key)) in gone)
        ledger.lost(LABELS, OF_LOST_IMAGE, count=lost)
