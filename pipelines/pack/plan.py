"""Which image goes where: a pure function of the source's list and the options.

All random choices are hashes of the seed and the image's key, so a plan can be recomputed after a kill or by another
task, and an image keeps its side of the hold-out when others are added or removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.pack.labels import choose_classes
from pipelines.pack.options import PackOptions, PlanInputs
from pipelines.pack.selection import IMAGES, Duplicates, Selection
from pipelines.pack.split_lists import SplitLists
from pipelines.sources.protocol import Item
from pipelines.sources.table import ItemTable, Relabelling, Rows
from pretrain import seeds
from pretrain.config.schema.data import Target
from pretrain.data.ledger import Ledger
from pretrain.data.storage.classes import Classes

TAR_BLOCK = 512
LABEL_MEMBER_BYTES = 2 * TAR_BLOCK


@dataclass(frozen=True)
class Shard:
    """One tar to write: ``items`` are numbered from ``first`` on."""

    name: str
    first: int
    items: Sequence[Item]


@dataclass(frozen=True)
class Split:
    """One folder to write."""

    name: str
    shards: tuple[Shard, ...]

    @property
    def items(self) -> list[Item]:
        """All images in their order."""
        return [item for shard in self.shards for item in shard.items]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written.

    Attributes:
        classes: (id, name) in index order, after map, hierarchy and selection.
        splits: the folders.
        listing: digest of the source's list, by which a later run knows that the source has not changed.
        selection: the part of the source that was taken, in words.
        held_out: the rule of the hold-out, in words.
        multi_label: images may have several labels.
        ledger: images and labels of the source that the plan leaves out, and why.
        repeated: images to which the source gives one label twice.
        duplicates: which images are copies of others.
        target: the kind of target of an image.
        notes: on the effect of the options.
    """

    classes: tuple[tuple[str, str], ...]
    splits: tuple[Split, ...]
    listing: str
    selection: str
    held_out: str
    multi_label: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    repeated: int = 0
    duplicates: Duplicates | None = None
    target: Target = "labels"
    notes: tuple[str, ...] = ()

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → images that the plan leaves out."""
        lost = self.ledger.accounts[IMAGES].lost if self.ledger else {}
        return {reason: entry.count for reason, entry in lost.items()}

    @property
    def num_items(self) -> int:
        """Images of all splits."""
        return sum(len(shard.items) for split in self.splits for shard in split.shards)


def make_plan(
    items: ItemTable | Iterable[Item],
    classes: Classes,
    options: PackOptions,
    inputs: PlanInputs | None = None,
    *,
    multi_label: bool = False,
    target: Target = "labels",
) -> Plan:
    """Relabels, selects, holds out, shuffles and cuts into shards.

    Args:
        items: the source's list.
        classes: its classes.
        options: of the pack.
        inputs: contents of the files that the options name.
        multi_label: its images may have several labels.
        target: the kind of target of its images.

    Raises:
        ConfigError: a class is unknown, the selection is empty, or an option concerns labels that do not exist.
        DataError: two images have one key, or a class has too few images.
    """
    inputs = inputs or PlanInputs()
    options.check_target(target, len(classes))
    chosen = Selection(table := ItemTable.of(items), classes)
    by_split = _select(chosen, options, inputs, are_labelled=target == "labels")
    return Plan(
        classes=tuple(chosen.classes),
        splits=tuple(_split(name, rows, chosen, options) for name, rows in by_split.items() if len(rows)),
        listing=table.listing(chosen.hashes, classes),
        selection=_selection(options),
        held_out=_held_out(options, inputs.split_lists),
        multi_label=multi_label or chosen.is_multi or options.duplicates == "merge",
        ledger=chosen.left_out.ledger,
        repeated=chosen.repeated,
        duplicates=chosen.duplicates,
        target=target,
        notes=tuple(chosen.notes),
    )


def _select(
    chosen: Selection, options: PackOptions, inputs: PlanInputs, *, are_labelled: bool
) -> dict[str, NDArray[np.int64]]:
    """Applies the steps of the selection in order; returns the rows of each split."""
    chosen.relabel(_changes(options, inputs))
    if are_labelled:
        chosen.keep_labelled()
    chosen.drop(inputs.dropped_keys)
    if options.duplicates != "keep":
        assert inputs.content is not None, "duplicates are found by content"
        chosen.drop_copies(inputs.content, merge=options.duplicates == "merge")
    by_split = chosen.by_split(inputs.split_lists, options.holdout)
    if options.per_class:
        by_split["train"] = chosen.few(by_split["train"], options.per_class, options.seed)
    chosen.check_not_empty(by_split, options.holdout)
    return by_split


def _changes(options: PackOptions, inputs: PlanInputs) -> Iterator[Callable[[Classes], Relabelling]]:
    """The changes to labels, in this order: the map, the hierarchy, the selection of classes."""
    if inputs.label_map:
        yield inputs.label_map.relabelling
    if inputs.wordnet:
        yield inputs.wordnet.relabelling
    if options.classes:
        yield lambda classes: choose_classes(options.classes, classes)


def _split(name: str, rows: NDArray[np.int64], chosen: Selection, options: PackOptions) -> Split:
    """Shuffles the rows of a split and divides them into shards."""
    order = np.argsort(seeds.hash64(options.seed, "pack", chosen.hashes[rows]), kind="stable")
    return Split(name, _cut(chosen.table, rows[order], options))


def _cut(table: ItemTable, rows: NDArray[np.int64], options: PackOptions) -> tuple[Shard, ...]:
    sizes = -(-table.columns["num_bytes"][rows] // TAR_BLOCK) * TAR_BLOCK + TAR_BLOCK + LABEL_MEMBER_BYTES
    ends = np.cumsum(sizes)
    shards: list[Shard] = []
    first = 0
    while first < len(rows):
        before = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, before + options.shard_bytes, side="right"))
        last = min(max(fitting, first + 1), first + options.shard_samples)
        shards.append(Shard(f"shard-{len(shards):06d}.tar", first, Rows(table, rows[first:last])))
        first = last
    return tuple(shards)


def _selection(options: PackOptions) -> str:
    parts = [f"classes {options.classes}"] if options.classes else []
    parts += [f"{options.per_class} training images per class"] if options.per_class else []
    return ", ".join(parts)


def _held_out(options: PackOptions, lists: SplitLists | None) -> str:
    rules = [f"split {name} is what its list names" for name in lists.names] if lists else []
    rules += [f"a hash of the image's key is below {options.holdout:g}, for any seed"] if options.holdout else []
    return "; ".join(rules)
