"""Which classes the masks of a finished pack have: one that no pixel has is an error, as its numbers were misread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipelines.pack.masks import MaskOptions
from pipelines.pack.plan import Plan
from pretrain.data.storage.index import Records, records_name
from pretrain.errors import DataError

MOST_SHOWN = 8


def check_classes(out: Path, plan: Plan, options: MaskOptions, *, allow_empty: bool) -> None:
    """Looks whether every class occurs in some mask of the pack, and some class in every split.

    Args:
        out: of the pack.
        plan: of it.
        options: what the numbers were taken for.
        allow_empty: a class may occur nowhere.

    Raises:
        DataError: names the classes, the numbers that the masks have, and the options that settle it.
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
