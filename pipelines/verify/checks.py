"""Checks of a set after all its shards have been read; problems go into the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.sources.file_patterns import STATE_FILE
from pipelines.sources.samples import SAMPLES
from pipelines.verify.correlation import label_correlation
from pipelines.verify.report import MOST_NOTES, Report, Verdict
from pipelines.verify.targets import Target
from pretrain.data.ledger import Account
from pretrain.data.storage.card import CARD_FILE, Card
from pretrain.data.storage.card import check_card as check_card_fits
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.errors import DataError


def known_table(target: Target, verdict: Verdict) -> ShardTable | None:
    """The index of a set; None: it has none.

    Raises:
        DataError: a pack is not complete, or there are tars that are not in the index.
    """
    if not (target.folder / TABLE_FILE).is_file():
        if (target.folder.parent / STATE_FILE).is_file() and not (target.folder / CARD_FILE).is_file():
            raise DataError(  # an index of the existing shards would make the pack look finished
                f"{target.folder} is not completely packed yet; run the same python -m pipelines pack … again (or pack "
                f"merge {target.folder.parent}) to complete it"
            )
        return None
    table = ShardTable.load(target.folder)
    indexed, there = {row.name for row in table.rows}, set(target.names)
    verdict.errors += [f"{name}: in {TABLE_FILE}, but not there" for name in sorted(indexed - there)]
    extra = sorted(there - indexed)
    if extra:
        raise DataError(
            f"{target}: {len(extra)} tars are not in {TABLE_FILE}, such as {extra[0]}; move them away, or delete "
            f"{target.folder / TABLE_FILE} to make a new one of all of them"
        )
    return table


def check_ledger(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Warns about samples that are left out. A shard that could not be read to its end already has an error."""
    samples = verdict.ledger.accounts.get(SAMPLES, Account())
    for reason, lost in samples.lost.items():
        verdict.warnings.append(f"samples are left out: {lost.count} ({reason}, such as {lost.examples[0]})")
    empty = [report.name for report in reports if report.row is not None and not report.row.num_samples]
    if empty:
        verdict.warnings.append(f"shards without a sample: {len(empty)}, such as {empty[0]}")
    if all(report.row is not None for report in reports):
        verdict.ledger.check(verdict.where)


def check_labels(verdict: Verdict, reports: Sequence[Report]) -> None:
    """Warns about labels that are not shuffled across the shards."""
    found = label_correlation([report.labels for report in reports])
    if found is not None and found.is_ordered:
        verdict.warnings.append(
            f"the labels are not mixed along the shards: {found}. Shuffling while reading cannot fix that, and "
            "training on it goes wrong. Pack it again: python -m pipelines pack webdataset "
            f"{verdict.where} --out DIR"
        )


def check_masks(table: ShardTable, reports: Sequence[Report], verdict: Verdict) -> None:
    """Masks that contain no class of the set, or not all classes: usually their numbers were misread."""
    seen = {number for report in reports for number in report.mask_classes or ()}
    if table.target != "mask" or not any(report.mask_classes is not None for report in reports):
        return
    missing = [number for number in range(table.num_classes) if number not in seen]
    if not seen:
        verdict.errors.append("no pixel of the masks has a class: all are 255")
    elif max(seen) >= table.num_classes:
        verdict.errors.append(
            f"a pixel of a mask is {max(seen)}, but there are {table.num_classes} classes (255: none)"
        )
    if seen and missing:
        named = ", ".join(map(str, missing[:MOST_NOTES])) + (", …" if len(missing) > MOST_NOTES else "")
        verdict.warnings.append(
            f"{len(missing)} of {table.num_classes} classes occur in no mask: {named}. If they should, pack the masks "
            "again: pack reports the numbers that they are stored as"
        )


def check_card(target: Target, table: ShardTable, verdict: Verdict) -> None:
    """Compares the card of a set with its index."""
    try:
        check_card_fits(Card.load(target.folder), table, str(target))
    except DataError as error:
        verdict.errors.append(str(error))
