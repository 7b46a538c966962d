"""Splits by explicit lists: one file per split, one image per line, in the formats that published data sets use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.splits import splits_in, to_split_name
from pipelines.sources.table import ItemTable
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest
from pretrain.names import from_bytes, shown
from pretrain.text_files import UTF8, decode_text

HEADERS = frozenset(
    ["path", "image", "images", "file", "filename", "file_name", "name", "id", "image_id", "image_name"]
)
_COLUMN = re.compile(r"\s*[,;\t]\s*|\s+")
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True)
class SplitList:
    """One file: its lines, and the digest by which the card names it."""

    split: str
    path: Path
    lines: tuple[str, ...]
    digest: str
    is_utf8: bool = True


class SplitLists:
    """All ``--split NAME=FILE`` of a pack.

    A line is an image's key as the packer lists it, or an end of it that begins after a slash, with or without the
    extension; ``./`` and folders before the key do not matter. All lines of a file are read in one way: as they
    are, without comments, or as a table with one column that names the image. Images on no list stay where the source
    has them, unless there is a list for train: then they are left out.

    Attributes:
        notes: how the lines were read if they contain more than names, filled by ``assign``.
    """

    def __init__(self, lists: list[SplitList]) -> None:
        self.lists = lists
        self.names = [entry.split for entry in lists]
        self.notes: list[str] = []

    @classmethod
    def load(cls, arguments: list[str], encoding: str = UTF8) -> SplitLists:
        """Reads the files.

        Args:
            arguments: NAME=FILE of each.
            encoding: of files without a byte-order mark.

        Raises:
            ConfigError: an argument is not NAME=FILE, or a file cannot be read or is empty.
        """
        lists = []
        for argument in arguments:
            split, is_given, path = argument.partition("=")
            if not is_given or not path:
                raise ConfigError(f"--split {argument}: write NAME=FILE, such as val=val_ids.txt")
            split = to_split_name(split, f"--split {argument}")
            if split in [entry.split for entry in lists]:
                raise ConfigError(f"--split {split} is given twice")
            try:
                data = Path(path).read_bytes()
            except (OSError, ValueError) as error:
                raise ConfigError(f"--split {argument}: cannot be read ({error})") from error
            text, is_utf8 = _text(data, path, encoding)
            lines = tuple(line.strip() for line in re.split(r"[\r\n]+", text) if line.strip())
            if not lines:
                raise ConfigError(f"--split {argument}: the file names no image")
            lists.append(SplitList(split, Path(path), lines, digest(data), is_utf8))
        return cls(lists)

    def assign(self, table: ItemTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the list that names each row, -1 where none does.

        A list may name images of the table that are not among the rows, such as those of unselected classes.

        Raises:
            DataError: a list names an image that does not exist, one name fits several images, or an image is on two
                lists.
        """
        found = np.full(len(table), -1, dtype=np.int64)
        self.notes = []
        keys = _Keys(table)
        keys.look_up(line for entry in self.lists for line in entry.lines)
        for index, entry in enumerate(self.lists):
            for row in self._rows_of(entry, keys):
                if found[row] not in (-1, index):
                    both = f"{self.names[found[row]]} and {entry.split}"
                    raise DataError(f"--split: {shown(table.key(row))!r} is on the lists of {both}")
                found[row] = index
        return found[rows]

    def _rows_of(self, entry: SplitList, keys: _Keys) -> list[int]:
        """The rows that a list names, by the first reading in which it names nothing else."""
        where = f"--split {entry.split}={entry.path}"
        tried: list[_Match] = []
        for what, reading in READINGS.items():
            names = list(dict.fromkeys(filter(None, map(reading, entry.lines))))
            if not names or (what and all(name.isdecimal() for name in names)):
                continue  # such as an index and a flag: the names of these images are in another file
            match = keys.match(names)
            if len(names) > 1 and match.missing[:1] == names[:1] and names[0].lower() in HEADERS:
                match, what = replace(match, missing=match.missing[1:]), f"{what or 'as it is'}, without its header"
            if not match.missing and not match.ambiguous:
                self.notes += [f"{where}: read {what}"] if what else []
                return match.rows
            tried.append(match)
        best = min(tried, key=lambda match: len(match.missing) / match.num_names)
        if not best.missing:
            name, first, second = map(shown, best.ambiguous)
            raise DataError(f"{where}: {name!r} fits {first!r} and {second!r}; write the complete key")
        name = best.missing[0]
        raise DataError(
            f"{where}: {len(best.missing)} of its {best.num_names} images are not in the source, such as "
            f"{shown(name)!r}; keys look like {shown(keys.first)!r}{keys.hint(name, is_utf8=entry.is_utf8)}"
        )


READINGS: dict[str, Callable[[str], str]] = {
    "": lambda line: line,
    "without comments behind #": lambda line: _COMMENT.sub("", line).strip(),
    "without the last column": lambda line: _columns(line, last=True)[0],
    "by its first column": lambda line: _columns(line)[0],
    "without the first column": lambda line: _columns(line)[-1],
}


def _columns(line: str, *, last: bool = False) -> list[str]:
    """A line without its comment, split at its first delimiter, or at its last."""
    line = _COMMENT.sub("", line).strip()
    places = list(_COLUMN.finditer(line))
    place = (places[-1] if last else places[0]) if places else None
    parts = [line[: place.start()], line[place.end() :]] if place else [line]
    return [part.strip().strip("\"'") for part in parts]


@dataclass(frozen=True)
class _Match:
    """The names of a list resolved: rows, names without a row, and one with two rows, with their keys."""

    num_names: int
    rows: list[int]
    missing: list[str]
    ambiguous: tuple[str, ...] = ()


class _Keys:
    """The keys of a table, and which rows a name may mean. Only names that were looked up take memory."""

    def __init__(self, table: ItemTable) -> None:
        self._table = table
        self._looked_up: set[str] = set()
        self._row: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._twice: dict[str, int] = {}

    @property
    def first(self) -> str:
        """One of the keys."""
        return self._table.key(0)

    def look_up(self, names: Iterable[str]) -> None:
        """Scans all keys for those that the names may mean."""
        wanted = {one for name in names for one in _without_front(name)} - self._looked_up
        if not wanted:
            return
        self._looked_up |= wanted
        for row in range(len(self._table)):
            key = self._table.key(row)
            if key in wanted:
                self._row[key] = row
            for end in _ends(key):
                if end in wanted and self._ends.setdefault(end, row) != row:
                    self._twice[end] = row

    def match(self, names: Sequence[str]) -> _Match:
        """The rows of names: by the complete key, else by an end of it."""
        self.look_up(names)
        rows: list[int] = []
        missing, ambiguous = [], ()
        for name in names:
            known = next((one for one in _without_front(name) if one in self._row or one in self._ends), None)
            if known is None:
                missing.append(name)
            elif known in self._row:
                rows.append(self._row[known])
            else:
                rows.append(self._ends[known])
                if known in self._twice:
                    ambiguous = (name, self._table.key(self._ends[known]), self._table.key(self._twice[known]))
        return _Match(len(names), rows, missing, ambiguous)

    def hint(self, name: str, *, is_utf8: bool) -> str:
        """A likely reason why no row has this name."""
        if not is_utf8:
            return ". The list is not UTF-8 text: save it as UTF-8, or name its encoding with --encoding, such as cp949"
        for wanted in dict.fromkeys([name.lower(), name.rpartition("/")[2].lower()]):
            for key in map(self._table.key, range(len(self._table))):
                if wanted in (key.lower(), *map(str.lower, _ends(key))):
                    return f". {shown(key)!r} differs from it in upper and lower case, or in its folder"
        return ""


def _ends(key: str) -> Iterator[str]:
    """A key without its extension, and all its ends after a slash, with and without it."""
    stem = key[: key.rfind(".")] if "." in key.rpartition("/")[2][1:] else key
    yield stem
    place = key.find("/")
    while place >= 0:
        yield key[place + 1 :]
        if stem != key:
            yield stem[place + 1 :]
        place = key.find("/", place + 1)


def _without_front(name: str) -> Iterator[str]:
    """A name, and its end without leading folders, which may be those of the source.

    The class and the file stay, and so does a folder of a split: ``train/cat/1.jpg`` is not ``cat/1.jpg`` of another.
    """
    yield name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    while parts:
        yield "/".join(parts)
        if len(parts) <= 2 or splits_in(parts[0]):
            return
        parts = parts[1:]


def _text(data: bytes, path: str, encoding: str) -> tuple[str, bool]:
    """The text of a list, and whether it is valid in ``encoding``.

    Without another encoding from the user, bytes that are not UTF-8 are kept, since file names may contain the same.
    """
    try:
        return decode_text(data, path, encoding, "name its encoding with --encoding, such as cp949"), True
    except DataError:
        if encoding.lower() != UTF8:
            raise
        return from_bytes(data), False
