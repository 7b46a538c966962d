"""Images that a plan leaves out: their count for the ledger, and exact duplicates (the same bytes)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.relabelling import Relabelling, without_repeats
from pipelines.sources.table import ItemTable
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.names import shown

IMAGES, LABELS = "images", "labels"
OF_LOST_IMAGE = "of an image that is left out"
TRAIN = "train"


class LeftOut:
    """Counts on the way from a source's list to a plan.

    Args:
        table: the list.

    Attributes:
        ledger: images and labels; how many of them are used is only known when they are packed.
    """

    def __init__(self, table: ItemTable) -> None:
        self.ledger = Ledger()
        self.ledger.found(IMAGES, len(table))
        if num_labels := len(table.columns["labels"]):
            self.ledger.found(LABELS, num_labels)

    def rows(self, table: ItemTable, rows: NDArray[np.int64], reason: str) -> None:
        """Records images that are left out, with their current labels."""
        self.ledger.lost(IMAGES, reason, *map(table.key, rows[:MOST_EXAMPLES].tolist()), count=len(rows))
        self.ledger.lost(LABELS, OF_LOST_IMAGE, count=int(table.num_labels[rows].sum()))

    def relabelled(self, before: ItemTable, after: ItemTable, change: Relabelling) -> None:
        """Records labels that a map, a hierarchy or a selection of classes removes or adds."""
        counts = np.array([len(target) for target in change.targets], dtype=np.int64)[before.columns["labels"]]
        num_gone, num_made = int((counts == 0).sum()), int(counts.sum())
        self.ledger.lost(LABELS, "of a class that is not wanted", count=num_gone)
        self.ledger.lost(LABELS, "repeated in one image", count=num_made - len(after.columns["labels"]))
        self.added(num_made - (len(counts) - num_gone))

    def added(self, count: int) -> None:
        """Records labels that are not from the source: of ancestors, or of an image's copies."""
        if count:
            self.ledger.found(LABELS, count)


@dataclass(frozen=True)
class Duplicates:
    """The images that remain after duplicates are removed.

    Attributes:
        table: the list, with merged labels if requested.
        kept: rows that are kept, ascending.
        copies: (n, 2) rows: the one that is left out, and the one that is kept instead.
    """

    table: ItemTable
    kept: NDArray[np.int64]
    copies: NDArray[np.int64]

    def entries(self) -> Iterator[dict[str, Any]]:
        """The copies that were left out, as lines of a report."""
        for gone, stays in self.copies.tolist():
            copy, image = (shown(self.table.key(row)) for row in (gone, stays))
            yield {"source": copy, "because": "exact duplicate", "of": image}


def find_duplicates(
    table: ItemTable,
    rows: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    content: NDArray[np.uint64],
    *,
    merge: bool,
) -> Duplicates:
    """Keeps one row of those with equal content.

    The one with the smallest key hash is kept, so that the choice does not depend on the order of the list. If an image
    is in train and in another split, the training copies are dropped; other splits keep one copy each.

    Args:
        table: the source's list.
        rows: the ones to consider.
        hashes: key hash of every row of the table.
        content: uint64 (N, 2) digest of every row's bytes.
        merge: the kept one gets the labels of its copies in the same split, after its own.
    """
    is_train = np.array([name == TRAIN for name in table.split_names], dtype=bool)[table.columns["splits"][rows]]
    split = table.columns["splits"][rows].astype(np.int64)
    order = np.lexsort((hashes[rows], split, is_train, content[rows, 1], content[rows, 0]))
    ordered = rows[order]
    same = np.all(content[ordered[1:]] == content[ordered[:-1]], axis=1) if len(rows) else np.zeros(0, dtype=bool)
    new_image = np.concatenate([[True], ~same])[: len(rows)]
    new_split = np.concatenate([[True], ~same | (split[order][1:] != split[order][:-1])])[: len(rows)]
    stays = new_image | (new_split & ~is_train[order])
    # a copy in train gives way to the image's first row, any other to the first in its split
    leader = np.maximum.accumulate(np.where(stays, np.arange(len(rows)), 0))
    copies = np.stack([ordered[~stays], ordered[leader[~stays]]], axis=1)
    if merge:
        table = _merged(table, copies[split[order][~stays] == split[order][leader[~stays]]])
    return Duplicates(table, np.sort(ordered[stays]), copies)


def _merged(table: ItemTable, copies: NDArray[np.int64]) -> ItemTable:
    """Adds the labels of its copies to each row that is kept."""
    counts, starts = table.num_labels, table.columns["label_starts"]
    gone, stays = copies[:, 0], copies[:, 1]
    added = counts[gone]
    within = np.arange(added.sum()) - np.repeat(np.cumsum(added) - added, added)
    more = table.columns["labels"][np.repeat(starts[gone], added) + within]
    rows = np.concatenate([np.repeat(np.arange(len(table)), counts), np.repeat(stays, added)])
    labels = np.concatenate([table.columns["labels"], more])
    order = np.argsort(rows, kind="stable")
    return table.with_labels(*without_repeats(labels[order], rows[order], len(table)))
