"""Lists of classes in the common formats: a name per line, ``id,name``, a number in front, classes.csv, JSON.

A list maps label numbers to classes; no entry is shortened, merged or left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.storage.classes import WHOLE_NUMBER, ClassLookup, repeated
from pretrain.errors import ConfigError, DataError
from pretrain.text_files import UTF8, read_text

HEADER = {  # word of a header → what the column is
    **dict.fromkeys(("index", "idx", "number", "class_index", "class_idx", "classid", "label_id"), "index"),
    **dict.fromkeys(("id", "wnid", "synset", "class_id"), "id"),
    **dict.fromkeys(("name", "class", "label", "class_name", "classname", "label_name"), "name"),
}
COLUMNS = ({"index", "id", "name"}, {"id", "name"}, {"index", "name"}, {"name"})
_REMEDY = "save it as UTF-8, or name its encoding with --encoding, such as cp949 or latin-1"
_COMMA = re.compile(r"([^\s,]+),(?!\s)(.+)")  # id,name; a comma followed by a blank belongs to a name
_CODE = re.compile(r"((?:[A-Za-z]{1,3})?[0-9]+)(?:[:.)]?\s+|:)(.+)")  # n01440764 tench, Tinca tinca · 0: tench
_OTHER_FORMS = (  # first characters of files in other formats → name of the format
    ("{", "JSON or a Python dict; save it as JSON in a .json file"),
    ("[", "JSON or a Python list; save it as JSON in a .json file"),
    ("item {", "a label map of TensorFlow's (.pbtxt); write a class per line"),
    ("- ", "YAML; write a class per line"),
    ("# ", "a comment, which would be the name of class 0; take it out"),
)
FORMS = "a name per line, id,name, NUMBER NAME, the header index,id,name, or JSON"


@dataclass(frozen=True)
class ClassList:
    """Classes in order, and the label number of each.

    Attributes:
        classes: (id, name); ids are distinct.
        where: their source, for messages.
        numbers: the label number of each class; (): 0, 1, 2, …
        of_numbers: the labels are known to be numbers of the list, since a program wrote both.
    """

    classes: tuple[tuple[str, str], ...]
    where: str = field(compare=False)
    numbers: tuple[int, ...] = ()
    of_numbers: bool = field(default=False, compare=False)

    @cached_property
    def lookup(self) -> ClassLookup:
        """Finds classes by id and name."""
        return ClassLookup(self.classes, self.where)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self.numbers or range(len(self.classes)))}

    def place_of_number(self, number: int, where: str) -> int:
        """The index in the list of label number ``number``.

        Raises:
            DataError: the list has no such number.
        """
        if number not in self._places:
            known = list(self._places)
            raise DataError(
                f"{where}: the label {number} is outside the {len(known)} classes of {self.where}, whose numbers are "
                f"{min(known, default=0)}-{max(known, default=0)}"
            )
        return self._places[number]

    def place_of_text(self, text: str, where: str) -> int:
        """The index in the list of a class that a label names.

        Raises:
            DataError: the list has no such id or name, or several.
        """
        if text not in self.lookup:
            raise DataError(f"{where}: the label {text!r} is not a class of {self.where}; {self.lookup.known()}")
        return self.lookup.find(text)

    def from_zero(self, what: str) -> list[tuple[str, str]]:
        """The classes, whose numbers must be 0, 1, 2, …

        Raises:
            ConfigError: the file numbers them otherwise.
        """
        if self.numbers and self.numbers != tuple(range(len(self.numbers))):
            raise ConfigError(
                f"--class-names {self.where}: its numbers are {self.numbers[0]}-{self.numbers[-1]}; {what} need "
                f"0-{len(self.numbers) - 1}: a class per line in that order"
            )
        return list(self.classes)


def read_class_names(path: Path, encoding: str = UTF8) -> ClassList:
    """Reads a list of classes in one of ``FORMS``.

    Raises:
        ConfigError: the file is empty, or in none of these forms. DataError: it cannot be read.
    """
    text, where = read_text(path, encoding, _REMEDY), str(path)
    if path.suffix.lower() == ".json":
        return _from_json(text, where)
    lines = re.split(r"\r\n|\n|\r", text)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ConfigError(f"--class-names {where}: names no class")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(
                f"--class-names {where}:{number}: an empty line; which class has no name? Name it, or remove the line"
            )
    if form := next((form for start, form in _OTHER_FORMS if lines[0].startswith(start)), None):
        raise ConfigError(f"--class-names {where}:1: {lines[0][:40]!r} is {form}; known forms: {FORMS}")
    mark = "\t" if "\t" in lines[0] else ","
    header = [HEADER.get(cell.strip().strip('"').lower(), "") for cell in lines[0].split(mark)]
    if set(header) in COLUMNS and (len(header) > 1 or path.suffix.lower() in (".csv", ".tsv")):
        return _from_columns(lines[1:], header, mark, where)
    return _from_pairs([_split(line.strip(), where, number) for number, line in enumerate(lines, 1)], lines, where)


def class_list(pairs: Sequence[tuple[str, str]], where: str) -> ClassList:
    """A list numbered 0, 1, 2, …, for labels that are numbers of the list."""
    return ClassList(tuple(pairs), where, of_numbers=True)


def of_names(names: Sequence[str], where: str) -> ClassList:
    """Names by position: the id of a class is its name, or its number if a name occurs twice."""
    return ClassList(tuple(_with_ids(names)), where)


def _with_ids(names: Sequence[str]) -> list[tuple[str, str]]:
    if repeated(names):
        return [(str(number), name) for number, name in enumerate(names)]
    return [(name, name) for name in names]


def _split(line: str, where: str, number: int) -> tuple[str, str]:
    """(id, name) of a line, or ("", name) if it has no id."""
    if line.startswith('"') or '"' in line.partition(",")[2][:1]:
        try:
            cells = next(csv.reader([line], strict=True, skipinitialspace=True))
        except csv.Error as error:
            raise ConfigError(f"--class-names {where}:{number}: {line!r}: {error}") from error
        if len(cells) > 2:
            raise ConfigError(f"--class-names {where}:{number}: {len(cells)} values; write id,name, names in quotes")
        return (cells[0].strip(), cells[1].strip()) if len(cells) == 2 else ("", cells[0].strip())
    first, tab, rest = line.partition("\t")
    if tab and rest.strip():
        return first.strip(), rest.strip()
    found = _COMMA.fullmatch(line)
    return (found[1], found[2].strip()) if found else ("", line)


def _from_pairs(pairs: list[tuple[str, str]], lines: list[str], where: str) -> ClassList:
    with_id = [number for number, (identifier, _) in enumerate(pairs) if identifier]
    if with_id and len(with_id) < len(pairs):
        other = next(number for number, (identifier, _) in enumerate(pairs) if not identifier)
        raise ConfigError(
            f"--class-names {where}: line {with_id[0] + 1} is id,name and line {other + 1} is not; write all lines in "
            'one form, and a name with a comma in quotes: "crane, bird"'
        )
    if not with_id:
        codes = [_CODE.fullmatch(line.strip()) for line in lines]
        if all(codes) and _are_codes([code[1] for code in codes if code]):
            pairs = [(code[1], code[2].strip()) for code in codes if code]
        else:
            return of_names([name for _, name in pairs], where)
    return _with_given_ids(pairs, where)


def _are_codes(words: list[str]) -> bool:
    """The first words of the lines if they are ids rather than parts of names: synsets, or numbers without a gap."""
    if repeated(words):
        return False
    numbers = [int(word) for word in words if WHOLE_NUMBER.fullmatch(word)]
    if not numbers:
        return True
    return len(numbers) == len(words) and sorted(numbers) in (
        list(range(len(words))),
        list(range(1, len(words) + 1)),
    )


def _with_given_ids(pairs: list[tuple[str, str]], where: str) -> ClassList:
    ids = [identifier for identifier, _ in pairs]
    if twice := repeated(ids):
        raise ConfigError(f"--class-names {where}: the id {twice[0]!r} is on two lines; ids are distinct")
    if not all(WHOLE_NUMBER.fullmatch(identifier) for identifier in ids):
        return ClassList(tuple(pairs), where)
    return _numbered({int(identifier): name for identifier, name in pairs}, where, len(pairs))


def _numbered(names: dict[int, str], where: str, count: int) -> ClassList:
    """Names by the number that the file gives to each."""
    if len(names) < count:
        raise ConfigError(f"--class-names {where}: two lines have one number")
    numbers = sorted(names)
    ordered = [names[number] for number in numbers]
    split = [_split(name, where, number + 1) for number, name in enumerate(ordered)]  # 0,n01440764,tench
    if all(identifier for identifier, _ in split) and not repeated([identifier for identifier, _ in split]):
        return ClassList(tuple(split), where, tuple(numbers))
    if repeated(ordered):
        return ClassList(tuple((str(number), names[number]) for number in numbers), where, tuple(numbers))
    return ClassList(tuple((name, name) for name in ordered), where, tuple(numbers))


def _from_columns(lines: list[str], header: list[str], mark: str, where: str) -> ClassList:
    rows = []
    for number, line in enumerate(lines, 2):
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]
        if len(cells) != len(header) or not all(cells):
            raise ConfigError(f"--class-names {where}:{number}: {line!r} does not fit the header {','.join(header)}")
        rows.append(dict(zip(header, cells, strict=True)))
    if not rows:
        raise ConfigError(f"--class-names {where}: names no class")
    if header == ["name"]:
        return of_names([row["name"] for row in rows], where)
    if "index" not in header:
        return _with_given_ids([(row["id"], row["name"]) for row in rows], where)
    if wrong := next((row for row in rows if not WHOLE_NUMBER.fullmatch(row["index"])), None):
        raise ConfigError(f"--class-names {where}: the index {wrong['index']!r} is not a number")
    if "id" not in header:
        return _numbered({int(row["index"]): row["name"] for row in rows}, where, len(rows))
    by_number = {int(row["index"]): (row["id"], row["name"]) for row in rows}
    if len(by_number) < len(rows) or repeated([identifier for identifier, _ in by_number.values()]):
        raise ConfigError(f"--class-names {where}: two lines have one index or one id")
    numbers = sorted(by_number)
    return ClassList(tuple(by_number[number] for number in numbers), where, tuple(numbers))


def _from_json(text: str, where: str) -> ClassList:
    """A list of names, {"0": name}, {"0": [id, name]}, {name: 0}, or a model's config with id2label."""
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except _Repeated as error:
        raise ConfigError(f"--class-names {where}: the key {error.args[0]!r} is there twice") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--class-names {where}: not JSON ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("id2label"), dict):
        content = content["id2label"]
    if isinstance(content, dict) and content and all(type(value) is int for value in content.values()):
        return _numbered({value: name for name, value in content.items()}, where, len(content))
    if isinstance(content, dict) and content and all(WHOLE_NUMBER.fullmatch(key) for key in content):
        if all(isinstance(value, str) for value in content.values()):
            return _numbered({int(key): value for key, value in content.items()}, where, len(content))
        content = [content[key] for key in sorted(content, key=int)] if _is_range(content) else content
    if isinstance(content, list) and content:
        if all(isinstance(value, str) for value in content):
            return of_names(content, where)
        if all(_is_pair(value) for value in content):
            return _with_given_ids([tuple(value) for value in content], where)
    raise ConfigError(
        f'--class-names {where}: JSON of classes is a list of names, or a mapping such as {{"0": name}}, '
        '{"0": [id, name]} or {name: 0}, whose numbers are 0, 1, 2, …'
    )


class _Repeated(Exception):
    """A JSON key that occurs twice, of which a parser would keep the last."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := repeated([key for key, _ in pairs]):
        raise _Repeated(twice[0])
    return dict(pairs)


def _is_range(content: dict[str, Any]) -> bool:
    return sorted(map(int, content)) == list(range(len(content)))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


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

    Lists are merged by the classes' identity, not by their numbers: two classes are the same if their ids are equal. An
    id that only counts the lines of its list identifies no class; in that case the names are compared.

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
