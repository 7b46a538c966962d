"""Which images a plan takes, and in which split each is: narrowed step by step, recording everything left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.pack.split_lists import SplitLists
from pipelines.sources.samples import split_name
from pipelines.sources.splits import TRAIN, to_split_name
from pipelines.sources.table import ItemTable, Relabelling, num_with_repeats, relabel, without_repeats
from pretrain import seeds
from pretrain.data.ledger import MOST_EXAMPLES, Ledger
from pretrain.data.storage.classes import Classes
from pretrain.errors import ConfigError, DataError
from pretrain.names import shown

FIRST_SPLITS = (TRAIN, "val")
Rows = NDArray[np.int64]
IMAGES, LABELS = "images", "labels"
OF_LOST_IMAGE = "of an image that is left out"


class Selection:
    """The images of a source's list that are still to be packed.

    Args:
        table: the list.
        classes: of the source.

    Attributes:
        table: the list with the current labels.
        classes: (id, name) of those labels.
        rows: int64 (n,), the remaining images, ascending.
        hashes: uint64 (N,), of every key of the list.
        left_out: the images and labels that the steps removed.
        is_multi: a step may have given one image several labels.
        repeated: images to which the source gives one label twice.
        duplicates: which images are copies of others, set by ``drop_copies``.
        notes: on the effect of the steps.

    Raises:
        DataError: two images have one key.
    """

    def __init__(self, table: ItemTable, classes: Classes) -> None:
        self.table, self.classes = table, classes
        self.rows, self.hashes = np.arange(len(table)), table.key_hashes()
        table.check_unique(self.hashes)
        self.left_out, self.repeated = LeftOut(table), num_with_repeats(table)
        self.is_multi = False
        self.duplicates: Duplicates | None = None
        self.notes: list[str] = []
        self._was_labelled = (table.num_labels > 0) | table.are_negatives

    def relabel(self, changes: Iterable[Callable[[Classes], Relabelling]]) -> None:
        """Applies changes to the labels; each starts from the classes that the previous one produced."""
        for change_of in changes:
            change, before = change_of(self.classes), self.table
            self.table, self.classes = relabel(before, change), change.classes
            self.left_out.relabelled(before, self.table, change)
            self.is_multi = self.is_multi or change.is_multi

    def keep_labelled(self) -> None:
        """Leaves out images without a label, but not those with none of the classes."""
        has_label = (self.table.num_labels > 0) | self.table.are_negatives
        self.left_out.rows(self.table, np.flatnonzero(~self._was_labelled), "no label")
        self.left_out.rows(self.table, np.flatnonzero(self._was_labelled & ~has_label), "no label chosen")
        self.rows = self.rows[has_label[self.rows]]

    def drop(self, keys: frozenset[str]) -> None:
        """Leaves out the samples that a drop list names as SHARD/KEY.

        Raises:
            DataError: some of them do not exist.
        """
        if not keys:
            return
        names = (self.table.key(int(row)) for row in self.rows)
        stays = np.array([split_name(name)[0] not in keys for name in names], dtype=bool)
        if not_found := len(keys) - int((~stays).sum()):
            raise DataError(f"--drop-list: {not_found} of its {len(keys)} samples are not among those to pack")
        self._leave_out(~stays, "drop list")

    def drop_copies(self, content: NDArray[np.uint64], *, merge: bool) -> None:
        """Leaves out all but one of the images with equal bytes; see ``find_duplicates``."""
        found = self.duplicates = find_duplicates(self.table, self.rows, self.hashes, content, merge=merge)
        self.left_out.rows(self.table, np.setdiff1d(self.rows, found.kept), "exact duplicate")
        self.left_out.added(len(found.table.columns["labels"]) - len(self.table.columns["labels"]))
        self.table, self.rows = found.table, found.kept

    def by_split(self, lists: SplitLists | None, holdout: float) -> dict[str, Rows]:
        """The rows of each split, train and val first.

        Args:
            lists: name the images of some splits.
            holdout: share of train that becomes val, chosen by the hash of the key.

        Raises:
            DataError: a split has a name that cannot be a folder, or see ``SplitLists.assign``.
        """
        _check_split_names([*self.table.split_names, *(lists.names if lists else [])])
        names = [*FIRST_SPLITS, *(name for name in self.table.split_names if name not in FIRST_SPLITS)]
        number = np.array([names.index(name) for name in self.table.split_names], dtype=np.int64)
        codes = number[self.table.columns["splits"][self.rows]]
        if lists:
            wanted = lists.assign(self.table, self.rows)  # -1: on no list
            self.notes += lists.notes
            names += [name for name in lists.names if name not in names]
            in_list = np.array([names.index(name) for name in lists.names], dtype=np.int64)
            codes = np.where(wanted >= 0, in_list[wanted], -1 if TRAIN in lists.names else codes)
            self.left_out.rows(self.table, self.rows[codes < 0], "on no split list")
        if holdout:
            held = seeds.uniform("holdout", self.hashes[self.rows]) < holdout
            codes = np.where(held & (codes == 0), 1, codes)
        made = {name: self.rows[codes == index] for index, name in enumerate(names)}
        if holdout and not lists:
            self._note_mixed_val(made["val"])
        return made

    def few(self, train: Rows, per_class: int, seed: int) -> Rows:
        """The first images of each class in a seeded order, so a larger selection contains every smaller one.

        Args:
            train: the rows of train.
            per_class: how many of each class, by an image's last label.
            seed: of the order.

        Raises:
            DataError: a class has fewer.
        """
        without = self.table.num_labels[train] == 0
        self.left_out.rows(self.table, train[without], "of no class, with --per-class")
        train = train[~without]
        last_labels = self.table.columns["labels"][self.table.columns["label_starts"][train + 1] - 1]
        by_order = np.argsort(seeds.hash64(seed, "per_class", self.hashes[train]), kind="stable")
        by_class = by_order[np.argsort(last_labels[by_order], kind="stable")]
        counts = np.bincount(last_labels, minlength=len(self.classes))
        rank = np.arange(len(train)) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = zip(self.classes, counts, strict=True)
        short = [f"{identifier} ({count})" for (identifier, _), count in pairs if count < per_class]
        if short and not np.any(self.table.num_labels[train] > 1):
            raise DataError(f"--per-class {per_class}: too few training images in {', '.join(short[:8])}")
        kept = train[by_class[rank < per_class]]
        self.left_out.rows(self.table, np.setdiff1d(train, kept), "more than --per-class")
        return kept

    def check_not_empty(self, splits: dict[str, Rows], holdout: float) -> None:
        """Rejects a plan without training images, or with an empty hold-out.

        Raises:
            ConfigError: the plan is such.
        """
        has_train = TRAIN in self.table.split_names  # the lists of VTAB-1k have other names
        if (has_train and not len(splits[TRAIN])) or not any(map(len, splits.values())):
            raise ConfigError("no training image is left; choose more classes or a smaller --holdout")
        if holdout and not len(splits["val"]):
            raise ConfigError(f"--holdout {holdout:g} holds out none of {len(splits['train'])} images; raise it")

    def _leave_out(self, goes: NDArray[np.bool_], reason: str) -> None:
        self.left_out.rows(self.table, self.rows[goes], reason)
        self.rows = self.rows[~goes]

    def _note_mixed_val(self, val: Rows) -> None:
        """Notes that val holds more than the source's own images."""
        if "val" not in self.table.split_names:
            return
        own = int((self.table.columns["splits"][val] == self.table.split_names.index("val")).sum())
        self.notes.append(
            f"val has {own} images of the source's own val and {len(val) - own} held out of train; leave --holdout out "
            "to keep it as the source has it"
        )


def _check_split_names(names: Iterable[str]) -> None:
    """Splits become folders, so their names must be plain and distinct on every file system, whatever their source."""
    known: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if to_split_name(name, "a split of the source") != name:
            raise DataError(f"the source calls a split {name!r}; it must be {to_split_name(name, '')!r}")
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise DataError(f"the splits {other!r} and {name!r} differ in upper and lower case alone; rename one")


class LeftOut:
    """Counts the images that are left out between a source's list and a plan.

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
