"""What a plan leaves out, told to the ledger: images, and labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.relabelling import Relabelling
from pipelines.sources.table import ItemTable
from pretrain.data.ledger import MOST_EXAMPLES, Ledger

IMAGES, LABELS = "images", "labels"
OF_LOST_IMAGE = "of an image that is left out"


class LeftOut:
    """Counts on the way from a source's list to a plan.

    Args:
        table: the list.

    Attributes:
        ledger: images and labels; what is used of them is only known when they are packed.
    """

    def __init__(self, table: ItemTable) -> None:
        self.ledger = Ledger()
        self.ledger.found(IMAGES, len(table))
        if num_labels := len(table.columns["labels"]):
            self.ledger.found(LABELS, num_labels)

    def rows(self, table: ItemTable, rows: NDArray[np.int64], reason: str) -> None:
        """Images that go, with the labels that they have by now."""
        self.ledger.lost(IMAGES, reason, *map(table.key, rows[:MOST_EXAMPLES].tolist()), count=len(rows))
        self.ledger.lost(LABELS, OF_LOST_IMAGE, count=int(table.num_labels[rows].sum()))

    def relabelled(self, before: ItemTable, after: ItemTable, change: Relabelling) -> None:
        """Labels that a map, a hierarchy or a choice of classes takes away, or adds."""
        counts = np.array([len(target) for target in change.targets], dtype=np.int64)[before.columns["labels"]]
        num_gone, num_made = int((counts == 0).sum()), int(counts.sum())
        self.ledger.lost(LABELS, "of a class that is not wanted", count=num_gone)
        self.ledger.lost(LABELS, "repeated in one image", count=num_made - len(after.columns["labels"]))
        self.added(num_made - (len(counts) - num_gone))

    def added(self, count: int) -> None:
        """Labels that the source did not give: of ancestors, or of an image's copies."""
        if count:
            self.ledger.found(LABELS, count)
