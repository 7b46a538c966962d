"""Which image goes where: a pure function of the source's list and the options.

Everything that depends on chance is a hash of the seed and the image's key, so a plan can be made again after a kill,
and an image keeps its side of the hold-out when others come or go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.protocol import Item
from pretrain import seeds
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest

TAR_BLOCK = 512
LABEL_MEMBER_BYTES = 2 * TAR_BLOCK


@dataclass(frozen=True)
class PackOptions:
    """What decides the packed bytes. Two packs with equal options and equal sources are equal."""

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

    def to_dict(self) -> dict[str, str | int | float | bool]:
        """The options as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Shard:
    """One tar to write: ``items`` are numbered from ``first`` on."""

    name: str
    first: int
    items: tuple[Item, ...]


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
        classes: (id, name) in index order, after the selection.
        splits: the folders.
        listing: digest of the source's list, by which a later run knows that the source has not changed.
        selection: the part of the source that was taken, in words.
        held_out: the rule of the hold-out, in words.
    """

    classes: tuple[tuple[str, str], ...]
    splits: tuple[Split, ...]
    listing: str
    selection: str
    held_out: str

    @property
    def num_items(self) -> int:
        """Images of all splits."""
        return sum(len(shard.items) for split in self.splits for shard in split.shards)


def make_plan(items: Sequence[Item], classes: Sequence[tuple[str, str]], options: PackOptions) -> Plan:
    """Selects, holds out, shuffles and cuts into shards.

    Raises:
        ConfigError: a class is unknown, or the selection leaves nothing.
        DataError: two images have one key, or a class has too few images.
    """
    _check_unique(items)
    chosen = parse_classes(options.classes, classes)
    kept = _select(items, chosen)
    hashes = {item.key: value for item, value in zip(kept, _key_hashes(kept), strict=True)}
    by_split = _hold_out(kept, hashes, options.holdout)
    if options.per_class:
        by_split["train"] = _few(by_split["train"], hashes, options, [classes[index] for index in chosen])
    _check_not_empty(by_split, options)
    splits = [
        Split(name, _cut(_shuffled(rows, hashes, options.seed), options)) for name, rows in by_split.items() if rows
    ]
    return Plan(
        classes=tuple(classes[index] for index in chosen),
        splits=tuple(splits),
        listing=_listing_digest(items, classes),
        selection=_selection(options),
        held_out=f"a hash of the image's key is below {options.holdout:g}, for any seed" if options.holdout else "",
    )


def parse_classes(text: str, classes: Sequence[tuple[str, str]]) -> list[int]:
    """Class indices that ``--classes`` means, ascending: ids, names, or ranges of indices such as 0-4; empty: all.

    Raises:
        ConfigError: a part names no class, or one class is named twice.
    """
    if not text:
        return list(range(len(classes)))
    named = {name: index for index, (_, name) in enumerate(classes)}
    named |= {identifier: index for index, (identifier, _) in enumerate(classes)}
    chosen = [index for part in text.split(",") for index in _class_part(part.strip(), named, len(classes))]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--classes {text}: a class is named twice")
    return sorted(chosen)


def _class_part(part: str, named: dict[str, int], num_classes: int) -> list[int]:
    if part in named:
        return [named[part]]
    first, dash, last = part.partition("-")
    if dash and first.isdigit() and last.isdigit() and int(first) <= int(last) < num_classes:
        return list(range(int(first), int(last) + 1))
    known = ", ".join(list(named)[-8:])
    raise ConfigError(
        f"--classes: {part!r} is neither a class (such as {known}) nor a range of indices within 0-{num_classes - 1}"
    )


def _select(items: Sequence[Item], chosen: Sequence[int]) -> list[Item]:
    new_index = {old: new for new, old in enumerate(chosen)}
    mapped = [
        item._replace(labels=tuple(new_index[label] for label in item.labels if label in new_index)) for item in items
    ]
    return [item for item in mapped if item.labels]


def _key_hashes(items: Sequence[Item]) -> NDArray[np.uint64]:
    blocks = b"".join(hashlib.blake2b(_bytes(item.key), digest_size=8).digest() for item in items)
    return np.frombuffer(blocks, dtype="<u8").astype(np.uint64)


def _hold_out(items: Sequence[Item], hashes: dict[str, np.uint64], share: float) -> dict[str, list[Item]]:
    values = np.array([hashes[item.key] for item in items], dtype=np.uint64)
    held = seeds.uniform("holdout", values) < share
    splits: dict[str, list[Item]] = {"train": [], "val": []}
    for item, is_held in zip(items, held, strict=True):
        split = "val" if is_held and item.split == "train" else item.split
        splits.setdefault(split, []).append(item._replace(split=split))
    return splits


def _few(
    items: Sequence[Item], hashes: dict[str, np.uint64], options: PackOptions, classes: Sequence[tuple[str, str]]
) -> list[Item]:
    """The first K training images of each class in a seeded order; a larger K keeps those of a smaller one."""
    order = seeds.hash64(options.seed, "per_class", np.array([hashes[item.key] for item in items], dtype=np.uint64))
    taken = [0] * len(classes)
    few = []
    for index in np.argsort(order, kind="stable"):
        label = items[index].labels[-1]
        if taken[label] < options.per_class:
            taken[label] += 1
            few.append(items[index])
    short = [f"{classes[label][0]} ({count})" for label, count in enumerate(taken) if 0 < count < options.per_class]
    short += [f"{identifier} (0)" for (identifier, _), count in zip(classes, taken, strict=True) if not count]
    if short and not any(len(item.labels) > 1 for item in items):
        raise DataError(f"--per-class {options.per_class}: too few training images in {', '.join(short[:8])}")
    return few


def _check_not_empty(splits: dict[str, list[Item]], options: PackOptions) -> None:
    if not splits["train"]:
        raise ConfigError("no training image is left; choose more classes or a smaller --holdout")
    if options.holdout and not splits["val"]:
        raise ConfigError(f"--holdout {options.holdout:g} holds out none of {len(splits['train'])} images; raise it")


def _shuffled(items: Sequence[Item], hashes: dict[str, np.uint64], seed: int) -> list[Item]:
    values = np.array([hashes[item.key] for item in items], dtype=np.uint64)
    order = np.argsort(seeds.hash64(seed, "pack", values), kind="stable")
    return [items[index] for index in order]


def _cut(items: Sequence[Item], options: PackOptions) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    first, num_bytes = 0, 0
    for number, item in enumerate(items):
        size = TAR_BLOCK + -(-item.num_bytes // TAR_BLOCK) * TAR_BLOCK + LABEL_MEMBER_BYTES
        full = number - first >= options.shard_samples or num_bytes + size > options.shard_bytes
        if number > first and full:
            shards.append(_shard(len(shards), first, items[first:number]))
            first, num_bytes = number, 0
        num_bytes += size
    return (*shards, _shard(len(shards), first, items[first:]))


def _shard(index: int, first: int, items: Sequence[Item]) -> Shard:
    return Shard(f"shard-{index:06d}.tar", first, tuple(items))


def _check_unique(items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise DataError(f"the source lists {item.key!r} twice; keys must be unique")
        seen.add(item.key)


def _listing_digest(items: Sequence[Item], classes: Sequence[tuple[str, str]]) -> str:
    rows = sorted((item.key, item.labels, item.num_bytes, item.split) for item in items)
    return digest(json.dumps([list(classes), rows]).encode())


def _selection(options: PackOptions) -> str:
    parts = [f"classes {options.classes}"] if options.classes else []
    parts += [f"{options.per_class} training images per class"] if options.per_class else []
    return ", ".join(parts)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
