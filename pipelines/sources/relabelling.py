"""Maps labels to others: new classes for old ones in a list of images, and one list of classes from several.

Lists are merged by the classes' identity, not by their numbers: two classes are the same if their ids are equal. An id
that only counts the lines of its list identifies no class; in that case the names are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.class_names import ClassList
from pipelines.sources.table import ItemTable
from pretrain.data.storage.classes import repeated
from pretrain.errors import DataError


@dataclass(frozen=True)
class Relabelling:
    """New classes, and for each old class the new ones that it maps to, from general to specific."""

    classes: tuple[tuple[str, str], ...]
    targets: tuple[tuple[int, ...], ...]

    @property
    def is_multi(self) -> bool:
        """Whether an old label may map to several."""
        return any(len(target) > 1 for target in self.targets)


def relabel(table: ItemTable, change: Relabelling) -> ItemTable:
    """Replaces each label by its targets; of repeated labels in a row the first is kept."""
    counts = np.array([len(target) for target in change.targets], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    targets = np.array([label for target in change.targets for label in target], dtype=np.int32)
    old = table.columns["labels"]
    per_label = counts[old]
    within = np.arange(per_label.sum()) - np.repeat(np.cumsum(per_label) - per_label, per_label)
    labels = targets[np.repeat(starts[old], per_label) + within] if len(targets) else targets
    rows = np.repeat(np.repeat(np.arange(len(table)), table.num_labels), per_label)
    return table.with_labels(*without_repeats(labels, rows, len(table)))


def without_repeats(
    labels: NDArray[np.int32], rows: NDArray[np.int64], num_rows: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """CSR of (labels, rows), both (n,) with ascending rows; of repeated pairs the first is kept."""
    width = int(labels.max(initial=0)) + 1
    _, first = np.unique(rows * width + labels, return_index=True)
    first.sort()
    counts = np.bincount(rows[first], minlength=num_rows)
    return labels[first], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def num_with_repeats(table: ItemTable) -> int:
    """Rows that have one label more than once."""
    counts, labels = table.num_labels, table.columns["labels"]
    if int(counts.max(initial=0)) < 2:
        return 0
    rows = np.repeat(np.arange(len(table)), counts)
    order = np.lexsort((labels, rows))
    same = (labels[order][1:] == labels[order][:-1]) & (rows[order][1:] == rows[order][:-1])
    return len(np.unique(rows[order][1:][same]))


class InList(NamedTuple):
    """The class at a position of one of the lists."""

    number: int
    place: int


class Union(NamedTuple):
    """All classes, the position of each list's classes among them, and notes."""

    classes: tuple[tuple[str, str], ...]
    places: dict[InList, int]
    notes: list[str]


def union_of(lists: Sequence[ClassList]) -> Union:
    """The classes of the first list, followed by those that only later lists have.

    Raises:
        DataError: a list has two classes of one name, so names are ambiguous.
    """
    first = lists[0]
    if len(lists) == 1:
        return Union(first.classes, {InList(0, place): place for place in range(len(first.classes))}, [])
    found: dict[str, int] = {}
    classes: list[tuple[str, str]] = []
    places: dict[InList, int] = {}
    notes: list[str] = []
    for number, one in enumerate(lists):
        for place, ((identifier, name), key) in enumerate(zip(one.classes, _keys(one), strict=True)):
            if key not in found:
                found[key] = len(classes)
                classes.append((key, name))
            elif (known := classes[found[key]][1]) != name and key == identifier:
                notes.append(f"the class {key!r} is called {known!r} and in {one.where} {name!r}; the first name stays")
            places[InList(number, place)] = found[key]
    sizes = ", ".join(f"{one.where} {len(one.classes)}" for one in lists[:4]) + (", …" if len(lists) > 4 else "")
    notes.insert(0, f"lists of classes that differ ({sizes}) were joined by id or name: {len(classes)} classes")
    return Union(tuple(classes), places, notes)


def _keys(one: ClassList) -> list[str]:
    """The key that identifies each class; all distinct."""
    keys = [name if identifier == str(place) else identifier for place, (identifier, name) in enumerate(one.classes)]
    if twice := repeated(keys):
        raise DataError(
            f"{one.where}: several classes are called {twice[0]!r}, so the lists cannot be joined by name; pack "
            "the sets apart, or rename the classes in one list for all (--class-names)"
        )
    return keys
