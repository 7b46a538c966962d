"""Several lists of classes as one, by what the classes are and not by their numbers.

A class is the same in two lists when its id is. An id that only counts the lines of its list says nothing about the
class; there its name decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.sources.class_names import ClassList
from pretrain.data.storage.class_lookup import repeated
from pretrain.errors import DataError


class InList(NamedTuple):
    """The class at a place of one of the lists."""

    number: int
    place: int


class Union(NamedTuple):
    """All classes, where those of each list are among them, and what was done in words."""

    classes: tuple[tuple[str, str], ...]
    places: dict[InList, int]
    notes: list[str]


def union_of(lists: Sequence[ClassList]) -> Union:
    """The classes of the first list, then those that only later ones have.

    Raises:
        DataError: a list has two classes of one name, so that names cannot say which is meant.
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
    """What each class is known by; all distinct."""
    keys = [name if identifier == str(place) else identifier for place, (identifier, name) in enumerate(one.classes)]
    if twice := repeated(keys):
        raise DataError(
            f"{one.where}: several classes are called {twice[0]!r}, so the lists cannot be joined by name; pack "
            "the sets apart, or rename the classes in one list for all (--class-names)"
        )
    return keys
