"""Which image goes where: a pure function of the source's list and the options.

Everything that depends on chance is a hash of the seed and the image's key, so a plan can be made again after a kill
or by another task, and an image keeps its side of the hold-out when others come or go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.pack.images import ImageOptions
from pipelines.pack.labels import LabelMap, choose_classes
from pipelines.pack.left_out import IMAGES, Duplicates, LeftOut, find_duplicates
from pipelines.pack.masks import MaskOptions
from pipelines.pack.split_lists import SplitLists
from pipelines.pack.wordnet import WordNet
from pipelines.sources.protocol import Item
from pipelines.sources.relabelling import num_with_repeats, relabel
from pipelines.sources.samples import split_name
from pipelines.sources.splits import to_split_name
from pipelines.sources.table import ItemTable, Rows
from pretrain import seeds
from pretrain.config.target import IN_WORDS, Target
from pretrain.data.ledger import Ledger
from pretrain.data.storage.class_lookup import Classes
from pretrain.errors import ConfigError, DataError

TAR_BLOCK = 512
LABEL_MEMBER_BYTES = 2 * TAR_BLOCK
FIRST_SPLITS = ("train", "val")


@dataclass(frozen=True)
class PackOptions:
    """What decides the packed bytes. Two packs with equal options and equal sources are equal.

    Files are named by their digest: ``label_map``, ``split_lists``.
    """

    source: str
    nested_labels: bool = False
    seed: int = 0
    shard_bytes: int = 256_000_000
    shard_samples: int = 10_000
    holdout: float = 0.0
    classes: str = ""
    per_class: int = 0
    name: str = ""
    licence: str = ""
    release: str = ""
    label_map: str = ""
    hierarchy: str = ""
    duplicates: str = "keep"
    split_lists: dict[str, str] = field(default_factory=dict)
    images: str = "keep"
    encode: str = ""
    quality: int = 95
    short_side: int = 0
    min_side: int = 0
    max_pixels: int = 0
    drop_list: str = ""
    reduce_zero_label: bool = False
    mask_values: str = ""
    mask_none: str = ""
    mask_orientation: str = "auto"
    of_source: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @property
    def of_images(self) -> ImageOptions:
        """What is done to every image."""
        return ImageOptions(
            self.images, self.encode, self.quality, self.short_side, self.min_side, self.max_pixels or None
        )

    def of_masks(self, num_classes: int) -> MaskOptions:
        """What the numbers of masks mean.

        Raises:
            ConfigError: see ``MaskOptions.of``.
        """
        return MaskOptions.of(
            num_classes,
            values=self.mask_values,
            none=self.mask_none,
            reduce_zero_label=self.reduce_zero_label,
            orientation=self.mask_orientation,
        )


@dataclass(frozen=True)
class PlanInputs:
    """What the options name and the plan needs the content of.

    Attributes:
        label_map: classes that become others.
        wordnet: where ancestors come from.
        split_lists: which image belongs to which split.
        content: uint64 (N, 2), digest of each row's bytes, where duplicates are not kept.
        dropped_keys: samples that a drop list names, as SHARD/KEY.
    """

    label_map: LabelMap | None = None
    wordnet: WordNet | None = None
    split_lists: SplitLists | None = None
    content: NDArray[np.uint64] | None = None
    dropped_keys: frozenset[str] = frozenset()


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
        ledger: what the plan leaves out of the source's images and labels, and why.
        repeated: images that the source gives one label twice.
        duplicates: which images are copies of others.
        target: what an image has.
        notes: remarks on what the options did.
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
        classes: the source's classes.
        options: what is wanted.
        inputs: contents of the files that the options name.
        multi_label: the source's images may have several labels.
        target: what the source's images have.

    Raises:
        ConfigError: a class is unknown, the selection leaves nothing, or an option is about labels that there are not.
        DataError: two images have one key, or a class has too few images.
    """
    inputs = inputs or PlanInputs()
    if target != "labels":
        _check_about_images(options, inputs, target)
    if target == "mask":
        options.of_masks(len(classes))
    else:
        _check_not_about_masks(options)
    table = items if isinstance(items, ItemTable) else ItemTable.of(items)
    hashes = table.key_hashes()
    table.check_unique(hashes)
    listing = table.listing(hashes, classes)
    left_out, is_labelled, repeated = LeftOut(table), table.num_labels > 0, num_with_repeats(table)
    table, classes, may_be_multi = _relabelled(table, classes, options, inputs, left_out)
    rows = np.arange(len(table))
    if target == "labels":
        rows = np.flatnonzero(table.num_labels > 0)
        left_out.rows(table, np.flatnonzero(~is_labelled), "no label")
        left_out.rows(table, np.flatnonzero(is_labelled & (table.num_labels == 0)), "no label chosen")
    rows = _without_dropped(table, rows, inputs.dropped_keys, left_out)
    duplicates = None
    if options.duplicates != "keep":
        assert inputs.content is not None, "duplicates are found by content"
        duplicates = find_duplicates(table, rows, hashes, inputs.content, merge=options.duplicates == "merge")
        left_out.rows(table, np.setdiff1d(rows, duplicates.kept), "exact duplicate")
        left_out.added(len(duplicates.table.columns["labels"]) - len(table.columns["labels"]))
        table, rows = duplicates.table, duplicates.kept
    by_split = _by_split(table, rows, hashes, options, inputs.split_lists, left_out)
    notes = _mixed_hold_out(table, by_split, options, inputs.split_lists)
    notes += tuple(inputs.split_lists.notes if inputs.split_lists else ())
    if options.per_class:
        train = by_split.get("train", rows[:0])
        by_split["train"] = _few(table, train, hashes, options, classes)
        left_out.rows(table, np.setdiff1d(train, by_split["train"]), "more than --per-class")
    _check_not_empty(by_split, table.split_names, options)
    splits = [
        Split(name, _cut(table, _shuffled(rows, hashes, options.seed), options))
        for name, rows in by_split.items()
        if len(rows)
    ]
    return Plan(
        classes=tuple(classes),
        splits=tuple(splits),
        listing=listing,
        selection=_selection(options),
        held_out=_held_out(options, inputs.split_lists),
        multi_label=multi_label or may_be_multi or options.duplicates == "merge",
        ledger=left_out.ledger,
        repeated=repeated,
        duplicates=duplicates,
        target=target,
        notes=notes,
    )


def _check_not_about_masks(options: PackOptions) -> None:
    plain = PackOptions("")
    for name in ("reduce_zero_label", "mask_values", "mask_none", "mask_orientation"):
        if getattr(options, name) != getattr(plain, name):
            raise ConfigError(f"--{name.replace('_', '-')} is about masks, which this source has not; leave it out")


def _check_about_images(options: PackOptions, inputs: PlanInputs, target: Target) -> None:
    given = {
        "--classes": options.classes,
        "--per-class": options.per_class,
        "--label-map": inputs.label_map,
        "--hierarchy": inputs.wordnet,
        "--duplicates merge": options.duplicates == "merge",
    }
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} is about class labels, but the images of this source have {IN_WORDS[target]}")


def _relabelled(
    table: ItemTable, classes: Classes, options: PackOptions, inputs: PlanInputs, left_out: LeftOut
) -> tuple[ItemTable, Classes, bool]:
    """The table with its final labels, their classes, and whether an image may have got several."""
    changes = []
    is_multi = False
    if inputs.label_map:
        changes.append(lambda: inputs.label_map.relabelling(classes))  # pyright: ignore[reportOptionalMemberAccess]
    if inputs.wordnet:
        changes.append(lambda: inputs.wordnet.relabelling(classes))  # pyright: ignore[reportOptionalMemberAccess]
    if options.classes:
        changes.append(lambda: choose_classes(options.classes, classes))
    for change in changes:
        relabelling = change()
        before, table, classes = table, relabel(table, relabelling), relabelling.classes
        left_out.relabelled(before, table, relabelling)
        is_multi = is_multi or relabelling.is_multi
    return table, classes, is_multi


def _without_dropped(
    table: ItemTable, rows: NDArray[np.int64], keys: frozenset[str], left_out: LeftOut
) -> NDArray[np.int64]:
    if not keys:
        return rows
    names = (table.key(int(row)) for row in rows)
    stays = np.array([split_name(name)[0] not in keys for name in names], dtype=bool)
    if not_found := len(keys) - int((~stays).sum()):
        raise DataError(f"--drop-list: {not_found} of its {len(keys)} samples are not among those to pack")
    left_out.rows(table, rows[~stays], "drop list")
    return rows[stays]


def _by_split(
    table: ItemTable,
    rows: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    options: PackOptions,
    lists: SplitLists | None,
    left_out: LeftOut,
) -> dict[str, NDArray[np.int64]]:
    _check_split_names([*table.split_names, *(lists.names if lists else [])])
    names = list(FIRST_SPLITS) + [name for name in table.split_names if name not in FIRST_SPLITS]
    number = {name: index for index, name in enumerate(names)}
    codes = np.array([number[name] for name in table.split_names], dtype=np.int64)[table.columns["splits"][rows]]
    if lists:
        wanted = lists.assign(table, rows)  # -1: on no list
        names += [name for name in lists.names if name not in number]
        in_list = np.array([names.index(name) for name in lists.names], dtype=np.int64)
        codes = np.where(wanted >= 0, in_list[wanted], -1 if "train" in lists.names else codes)
        left_out.rows(table, rows[codes < 0], "on no split list")
    if options.holdout:
        held = seeds.uniform("holdout", hashes[rows]) < options.holdout
        codes = np.where(held & (codes == 0), 1, codes)
    return {name: rows[codes == index] for index, name in enumerate(names)}


def _check_split_names(names: Iterable[str]) -> None:
    """Splits become folders: whatever source named them, they are plain names, and no two are one on any disk."""
    known: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if to_split_name(name, "a split of the source") != name:
            raise DataError(f"the source calls a split {name!r}; it must be {to_split_name(name, '')!r}")
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise DataError(f"the splits {other!r} and {name!r} differ in upper and lower case alone; rename one")


def _few(
    table: ItemTable, rows: NDArray[np.int64], hashes: NDArray[np.uint64], options: PackOptions, classes: Classes
) -> NDArray[np.int64]:
    """The first K training images of each class in a seeded order; a larger K keeps those of a smaller one."""
    order = seeds.hash64(options.seed, "per_class", hashes[rows])
    last_labels = table.columns["labels"][table.columns["label_starts"][rows + 1] - 1]
    by_order = np.argsort(order, kind="stable")
    by_class = by_order[np.argsort(last_labels[by_order], kind="stable")]
    counts = np.bincount(last_labels, minlength=len(classes))
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    short = [f"{name} ({count})" for (name, _), count in zip(classes, counts, strict=True) if count < options.per_class]
    if short and not np.any(table.num_labels[rows] > 1):
        raise DataError(f"--per-class {options.per_class}: too few training images in {', '.join(short[:8])}")
    return rows[by_class[rank < options.per_class]]


def _check_not_empty(splits: dict[str, NDArray[np.int64]], table_splits: Sequence[str], options: PackOptions) -> None:
    has_train = "train" in table_splits  # the lists of VTAB-1k are called otherwise
    if (has_train and not len(splits["train"])) or not any(map(len, splits.values())):
        raise ConfigError("no training image is left; choose more classes or a smaller --holdout")
    if options.holdout and not len(splits["val"]):
        raise ConfigError(f"--holdout {options.holdout:g} holds out none of {len(splits['train'])} images; raise it")


def _shuffled(rows: NDArray[np.int64], hashes: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    return rows[np.argsort(seeds.hash64(seed, "pack", hashes[rows]), kind="stable")]


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


def _mixed_hold_out(
    table: ItemTable, by_split: dict[str, NDArray[np.int64]], options: PackOptions, lists: SplitLists | None
) -> tuple[str, ...]:
    """Remarks that val holds more than the source's own images."""
    if not options.holdout or lists or "val" not in table.split_names:
        return ()
    val = by_split["val"]
    own = int((table.columns["splits"][val] == table.split_names.index("val")).sum())
    return (
        f"val has {own} images of the source's own val and {len(val) - own} held out of train; leave --holdout out to "
        "keep it as the source has it",
    )


def _held_out(options: PackOptions, lists: SplitLists | None) -> str:
    rules = [f"split {name} is what its list names" for name in lists.names] if lists else []
    rules += [f"a hash of the image's key is below {options.holdout:g}, for any seed"] if options.holdout else []
    return "; ".join(rules)
