"""The classes of a set: their list beside the tars, looking one up by name, and comparing the lists of two sets.

DIR/classes.csv    index,id,name
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import CheckpointError, DataError
from pretrain.names import printable
from pretrain.text_files import read_text

CLASSES_FILE = "classes.csv"
CLASSES_HEADER = ["index", "id", "name"]
Classes = Sequence[tuple[str, str]]  # (id, name) in the order of the numbers
WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")  # ASCII only: str.isdecimal knows the digits of every script


class ClassLookup:
    """Finds classes by id first, then by unique name, then by number, counted from 0.

    If any id is a whole number, whole numbers are always ids, so that a text never means a position in one place and
    an id in another.

    Args:
        classes: (id, name) in the order of the numbers.
        where: the set that they belong to, for messages.
    """

    def __init__(self, classes: Classes, where: str) -> None:
        self.classes, self.where = classes, where
        self._ids: dict[str, list[int]] = {}
        self._names: dict[str, list[int]] = {}
        for number, (identifier, name) in enumerate(classes):
            self._ids.setdefault(identifier, []).append(number)
            self._names.setdefault(name, []).append(number)
        self.numbers_are_ids = any(WHOLE_NUMBER.fullmatch(identifier) for identifier in self._ids)

    def __contains__(self, text: str) -> bool:
        return text in self._ids or text in self._names

    def find(self, text: str) -> int:
        """The number of a class.

        Raises:
            DataError: no class matches, or several do.
        """
        for kind, known in (("id", self._ids), ("name", self._names)):
            if found := known.get(text):
                if len(found) > 1:
                    raise DataError(self._several(kind, text, found))
                return found[0]
        if WHOLE_NUMBER.fullmatch(text) and not self.numbers_are_ids and int(text) < len(self.classes):
            return int(text)
        raise DataError(f"{self.where}: {text!r} is not a class; {self.known()}")

    def _several(self, kind: str, text: str, found: list[int]) -> str:
        shown = ", ".join(f"{number} (id {self.classes[number][0]})" for number in found[:4])
        return f"{self.where}: {len(found)} classes have the {kind} {text!r}: the numbers {shown}; name one by its id"

    def known(self) -> str:
        """Describes the texts that ``find`` accepts."""
        shown = ", ".join(repr(identifier) for identifier, _ in self.classes[:5])
        more = ", …" if len(self.classes) > 5 else ""
        numbers = "" if self.numbers_are_ids else f", or numbers below {len(self.classes)}"
        return f"there are {len(self.classes)} classes: {shown}{more}{numbers}"


def repeated(values: Sequence[str]) -> list[str]:
    """Values that occur more than once, ordered by first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def told_apart(classes: Classes) -> list[str]:
    """The classes' names; a name that several classes share is followed by the id (or number)."""
    shared = set(repeated([name for _, name in classes]))
    ids = [identifier for identifier, _ in classes]
    marks = ids if len(set(ids)) == len(ids) else [str(number) for number in range(len(ids))]
    return [f"{name} ({mark})" if name in shared else name for (_, name), mark in zip(classes, marks, strict=True)]


def differing_class(first: Classes, second: Classes) -> int | None:
    """The first number that means different classes in two lists; None if there is no contradiction.

    An id equal to the number (class 3 has the id 3) carries no information, so the names are compared; without names,
    the classes agree. Two lists of different lengths differ where the shorter one ends.
    """
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if not _agree(one, other, str(number)):
            return number
    return None if len(first) == len(second) else min(len(first), len(second))


def _agree(one: tuple[str, str], other: tuple[str, str], number: str) -> bool:
    for bare, named in ((one, other), (other, one)):
        if bare == (number, number):  # without a name it may be any class, but not another number
            return named[0] == number or WHOLE_NUMBER.fullmatch(named[0]) is None
    return one[1] == other[1] if number in (one[0], other[0]) else one[0] == other[0]


def named_outputs(
    ids: Sequence[str] | None, names: Sequence[str] | None, num_classes: int, classes: Classes
) -> list[tuple[str, str]]:
    """(id, name) of each output of a head, as far as it can be compared with a set's classes.

    Without ids, names count where they are the set's own in some order: different names may be synonyms.

    Args:
        ids, names: that the weights record.
        num_classes: outputs of the head.
        classes: of the set.
    """
    numbers = tuple(map(str, range(num_classes)))
    names = names or numbers
    if ids is None and sorted(names) != sorted(name for _, name in classes):
        names = numbers
    return list(zip(ids or numbers, names, strict=True))


def common_classes(outputs: Classes, classes: Classes) -> list[tuple[int, int]]:
    """(number in ``classes``, number in ``outputs``) of each class that is in both.

    They are the same by id where both lists have ids other than their numbers, else by name; lists of nothing but
    numbers, such as digits, by these. An entry without id and name of its own has no counterpart among named ones.
    """
    are_numbers = all(WHOLE_NUMBER.fullmatch(text) for listed in (outputs, classes) for pair in listed for text in pair)
    by = 0 if are_numbers or (_has_ids(outputs) and _has_ids(classes)) else 1
    known = {pair[by]: number for number, pair in enumerate(outputs) if are_numbers or pair[by] != str(number)}
    return [
        (number, known[pair[by]])
        for number, pair in enumerate(classes)
        if pair[by] in known and (are_numbers or pair[by] != str(number))
    ]


def _has_ids(classes: Classes) -> bool:
    return any(identifier != str(number) for number, (identifier, _) in enumerate(classes))


def require_same_classes(first: Classes, second: Classes, where: tuple[object, object]) -> None:
    """Refuses two sets whose numbers mean different classes.

    Raises:
        DataError: names the first class that differs.
    """
    number = differing_class(first, second)
    if number is None:
        return
    if number >= min(len(first), len(second)):
        raise DataError(f"{where[1]} has {len(second)} classes, {where[0]} {len(first)}; they must be of one set")
    words = [" ".join(dict.fromkeys(classes[number])) for classes in (first, second)]
    raise DataError(
        f"{where[1]} has other classes than {where[0]}, or the same in another order: class {number} is {words[1]!r} "
        f"there and {words[0]!r} here; pack both together, or one with the other's list of classes (--class-names)"
    )


def require_same_outputs(outputs: Classes, classes: Classes) -> None:
    """Checks that the outputs of a head that is kept are the classes of the data, in the same order.

    Raises:
        CheckpointError: they are not; the message names the first that differs.
    """
    first = differing_class(outputs, classes)
    if first is None:
        return
    if len(outputs) != len(classes):
        differ = f"the head has {len(outputs)} outputs, the data {len(classes)} classes"
    else:
        ours, theirs = (" ".join(dict.fromkeys(listed[first])) for listed in (classes, outputs))
        differ = f"output {first} is {theirs!r} in the weights, {ours!r} in the data"
    raise CheckpointError(
        f"init.head: keep: {differ}; set init.head: remap to keep the rows of the classes in common, or replace for a "
        "new head"
    )


def encode_classes(classes: list[tuple[str, str]]) -> bytes:
    """classes.csv from (id, name) in index order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLASSES_HEADER)
    writer.writerows([index, *map(printable, names)] for index, names in enumerate(classes))
    return text.getvalue().encode()


def load_classes(folder: str | Path) -> list[tuple[str, str]]:
    """(id, name) of each class of a packed set in index order; errors as ``read_classes``."""
    return read_classes(Path(folder) / CLASSES_FILE)


def read_classes(path: Path) -> list[tuple[str, str]]:
    """(id, name) of each class in index order.

    Raises:
        DataError: the file is not of the form index,id,name with the indices 0, 1, 2, … in order.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV ({error})") from error
    if not rows or rows[0] != CLASSES_HEADER:
        raise DataError(
            f"{path}:1: a list of classes begins with the line {','.join(CLASSES_HEADER)}; move a file of another form "
            "away, and give it with --class-names"
        )
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(CLASSES_HEADER) or row[0] != str(line - 2):
            raise DataError(f"{path}:{line}: {','.join(row)!r} is not {line - 2},id,name")
    return [(printable(identifier), printable(name)) for _, identifier, name in rows[1:]]
