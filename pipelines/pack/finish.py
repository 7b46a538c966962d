"""Makes a folder of finished shards into a data set: quarantine list, classes, card, and the index last.

Before that, what was packed is checked. The ledger counts the contents of the source, everything that the plan left
out, and the samples in the record files, and must add up. A class that occurs in no mask is an error, since it means
that the masks' numbers were misread.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.pack.contents import finish_contents
from pipelines.pack.listing import About
from pipelines.pack.masks import MaskOptions
from pipelines.pack.options import PackOptions
from pipelines.pack.plan import Plan, Shard, Split
from pipelines.pack.selection import IMAGES, LABELS, OF_LOST_IMAGE
from pipelines.sources.label_values import Moments
from pipelines.sources.protocol import Source
from pipelines.sources.samples import SAMPLES
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import encode_classes
from pretrain.data.storage.index import ShardRow, ShardTable, max_labels_of
from pretrain.data.storage.records import Records, records_name
from pretrain.errors import DataError
from pretrain.files import TEMPORARY_SUFFIX, digest, write_atomic
from pretrain.names import parsed, printable_in, shown
from pretrain.redaction import redacted

QUARANTINE_FILE = "quarantine.jsonl"
DROPPED_FILE = "dropped.jsonl"
NOT_ON_CARD = frozenset(["name", "licence", "release", "source"])  # these have their own fields
MOST_SHOWN = 8
JPEGS = "packed JPEGs"


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
        max_labels: see ``max_labels_of``.
        negatives: images with none of the classes.
        short_sides: lower end of a bucket → images.
        changes: what was changed → images.
        moments: of the vectors.
    """

    def __init__(self, num_classes: int) -> None:
        self.classes = np.zeros(num_classes, dtype=np.int64)
        self.max_labels, self.negatives = 1, 0
        self.short_sides: Counter[int] = Counter()
        self.changes: Counter[str] = Counter()
        self.moments = Moments()

    def on_card(self) -> dict[str, Any]:
        """The fields of a card that are counts."""
        return {
            "negatives": self.negatives,
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
        if "vectors" not in records.columns and "mask_offsets" not in records.columns:
            self.max_labels = max_labels_of(np.diff(starts), self.max_labels)
            self.negatives += int((np.diff(starts) == 0).sum())
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


def check_samples(about: About, max_bad_rate: float) -> None:
    """Rejects a source in which too many samples are broken and could not be listed.

    Raises:
        DataError: too many; gives the reasons and an example of each.
    """
    account = about.ledger.accounts.get(SAMPLES)
    if account is None or account.num_lost <= max_bad_rate * account.found:
        return
    kinds = "; ".join(f"{reason} × {lost.count}, such as {lost.examples[0]}" for reason, lost in account.lost.items())
    raise DataError(
        f"{account.num_lost} of {account.found} samples cannot be used ({kinds}), more than --max-bad-rate "
        f"{max_bad_rate:g} allows. Correct the tars, or run again with a higher --max-bad-rate"
    )


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
    """Warnings about a finished pack that is consistent but may not be what the user wants."""
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
    for outcome, count in sorted(records.info.get("restart_markers", {}).items(), reverse=True):
        ledger.found(JPEGS, count)
        ledger.used(JPEGS, outcome, count)
    if plan.target != "labels":
        return
    ledger.used(LABELS, f"in {split}", len(records.columns["labels"]))
    if quarantined:
        gone = {entry["source"] for entry in quarantined}  # as they were written, without credentials
        lost = sum(len(item.labels) for item in shard.items if redacted(shown(item.key)) in gone)
        ledger.lost(LABELS, OF_LOST_IMAGE, count=lost)


def check_classes(out: Path, plan: Plan, options: MaskOptions, *, allow_empty: bool) -> None:
    """Checks that every class occurs in a mask of the pack, and that every split has some class.

    Args:
        out: of the pack.
        plan: of it.
        options: how the numbers were read.
        allow_empty: a class may occur nowhere.

    Raises:
        DataError: names the classes, the numbers in the masks, and the options that resolve it.
    """
    if plan.target != "mask":
        return
    classes: Counter[int] = Counter()
    numbers: Counter[int] = Counter()
    for split in plan.splits:
        of_split: Counter[int] = Counter()
        for shard in split.shards:
            info = Records.open(out / split.name / records_name(shard.name)).info
            of_split.update({int(number): count for number, count in info.get("mask_classes", {}).items()})
            numbers.update({int(number): count for number, count in info.get("mask_numbers", {}).items()})
        if not of_split:
            raise DataError(f"{out / split.name}: no pixel of its masks has a class: {_remedy(out, numbers, options)}")
        classes.update(of_split)
    missing = [name for index, (_, name) in enumerate(plan.classes) if not classes[index]]
    if missing and not allow_empty:
        named = ", ".join(missing[:MOST_SHOWN]) + (", …" if len(missing) > MOST_SHOWN else "")
        raise DataError(
            f"{len(missing)} of {len(plan.classes)} classes occur in no mask of {out}: {named}. In the masks "
            f"{_remedy(out, numbers, options)}; or give --allow-empty-classes where they are really absent"
        )


def _remedy(out: Path, numbers: Counter[int], options: MaskOptions) -> str:
    found = sorted(numbers.items())
    shown = ", ".join(f"{number} (in {count:,} masks)" for number, count in found[: 2 * MOST_SHOWN])
    shown += ", …" if len(found) > 2 * MOST_SHOWN else ""
    none = " and ".join(str(number) for number in options.of_none if number in numbers)
    fits = len(found) == options.num_classes
    values = ",".join(str(number) for number, _ in found) if fits else "NUMBER,… (of each class, in the names' order)"
    ignored = f", and {none} counts as no class" if none else ""
    return (
        f"their pixels are stored as {shown}{ignored}. Delete {out} and pack again with --mask-values {values}, and "
        "with --mask-none NUMBER,… where pixels have no class"
    )
