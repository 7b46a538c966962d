"""Checks of what was packed: the ledger must add up, and every class must occur in the masks.

The ledger counts the contents of the source, everything that the plan left out, and the samples in the record files. A
class that occurs in no mask is an error, since it means that the masks' numbers were misread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipelines.pack.left_out import IMAGES, LABELS, OF_LOST_IMAGE
from pipelines.pack.listing import About
from pipelines.pack.masks import MaskOptions
from pipelines.pack.plan import Plan, Shard
from pipelines.sources.protocol import Source
from pipelines.sources.samples import SAMPLES
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.data.storage.card import Card
from pretrain.data.storage.records import Records, records_name
from pretrain.errors import DataError
from pretrain.names import parsed, shown
from pretrain.redaction import redacted

MOST_SHOWN = 8


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
