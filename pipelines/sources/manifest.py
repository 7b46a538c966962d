"""A table of images: CSV, TSV or JSON lines, with a path or URL, labels or numbers, and perhaps a split.

Columns: ``path`` or ``url`` (or ``image`` or ``file_name``, either) · ``label`` or ``labels`` · ``split`` · ``id``
Instead of labels, for a regression: ``target``, or one column ``target.NAME`` for each number; for segmentation:
``mask``, the path of a PNG.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.sources.entries import files_fingerprint
from pipelines.sources.file_patterns import is_url
from pipelines.sources.folder import SplitFolders
from pipelines.sources.label_classes import LabelCollector, LabelOptions
from pipelines.sources.label_values import VectorLength, to_vector
from pipelines.sources.manifest_rows import SUFFIXES, hint, is_json, rows_of
from pipelines.sources.options import Option, SourceOptions
from pipelines.sources.protocol import NOT_STATED, UNKNOWN_NUM_BYTES, Item, Source
from pipelines.sources.remote import Downloads
from pipelines.sources.splits import AROUND, OPTION, SPLIT_WORDS, is_split_word, to_split_name
from pipelines.sources.table import ItemTable, relabel
from pretrain.data.ledger import Ledger
from pretrain.data.storage.location import path_in
from pretrain.errors import ConfigError, DataError
from pretrain.files import file_digest

SEPARATOR = "|"
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
PLACES = ("path", "url", "image", "file_name")
LABELS = ("label", "labels")
ROWS = "rows"
TARGET = "target"
MASK = "mask"
SPLIT = "split"
ROOT = Option(
    "root", "manifest: where relative paths count from (its folder)", default=None, type=Path, decides_list=True
)


class ManifestSource(Source):
    """The images listed in a file; paths are relative to its folder, or to ``root``.

    In CSV and TSV, ``labels`` and ``target`` separate their parts by ``|``; in JSON lines they are lists. The meaning
    of labels is determined in label_classes.py.

    Args:
        path: the file: .csv, .tsv or .jsonl.
        how: how labels, classes and splits are read; see ``SourceOptions``.
        root: the base of relative paths; None: the file's folder.
    """

    looks_at_files = True

    def __init__(self, path: Path, how: SourceOptions | None = None, *, root: Path | None = None) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{path}: a manifest is a .csv, .tsv or .jsonl")
        if not path.is_file():
            raise DataError(f"{path} does not exist; give the .csv, .tsv or .jsonl that names the images")
        how = how or SourceOptions()
        self.path, self.root, self.name = path, root or path.parent, how.name or path.stem
        self.origin = f"manifest {path} ({file_digest(path)})"
        self._split_place = str(path.with_suffix(""))
        self._begin(how, typed=is_json(path))

    def _begin(self, how: SourceOptions, *, typed: bool) -> None:
        """Determines the target from the columns, and checks that the options apply to it.

        Args:
            how: the options.
            typed: values have types, as in JSON.
        """
        self.licence, self.classes, self.notes, self.downloads = NOT_STATED, [], [], Downloads()
        self._how, self._typed, self._list = how, typed, how.class_list()
        self._absolute_root = os.path.join(os.path.abspath(self.root), "")
        _, row = self._first_row()
        self._named = [name for name in row if name.startswith(f"{TARGET}.")]
        self.multi_label = self._column == "labels"
        self.target = "vector" if self._named or TARGET in row else "mask" if MASK in row else "labels"
        if self.target == "mask" and self._list is None:
            raise ConfigError(f"{self.path}: masks need --class-names FILE, a class per line")
        if self.target != "labels" and (self._how.label_column or self._how.labels != LabelOptions()):
            raise ConfigError(
                f"{self.path}: --label-column, --labels-are and --num-classes would be ignored: it has no labels"
            )
        if self.target == "vector" and self._list is not None:
            raise ConfigError(
                f"{self.path}: --class-names would be ignored; the names of numbers are those of the manifest"
            )
        if self._list is not None and self.target == "mask":
            self.classes = self._list.from_zero("masks")

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``. The content of a URL is assumed to be unchanged."""
        places = [str(row[name]) for _, row in self._rows() for name in (*PLACES, MASK) if row.get(name)]
        words = (file_digest(self.path), repr(self._list))
        return files_fingerprint((self.root / place for place in places if not is_url(place)), *words)

    def items(self) -> Iterable[Item]:
        """See ``Source.items``."""
        makers = {"vector": self._with_vectors, "mask": self._with_masks}
        splits, self.ledger = self._splits(), Ledger()
        self.ledger.found(ROWS, len(splits))
        if self.target == "labels":
            return self._with_classes(splits)
        return (item._replace(split=split) for item, split in zip(makers[self.target](), splits, strict=True))

    def _with_masks(self) -> Iterator[Item]:
        for line, row in self._rows():
            place, mask = self._place(row, line), str(row.get(MASK) or "")
            if not mask:
                raise DataError(f"{self._at(line)}: no {MASK}")
            size = self._size(place, line) + self._size(mask, line)
            self.ledger.used(ROWS, "images")
            yield Item(place, (), size, mask=mask)

    def _with_vectors(self) -> Iterator[Item]:
        lengths = VectorLength()
        for line, row in self._rows():
            where = f"{self._at(line)}"
            if self._named and (extra := {name for name in row if name.startswith(f"{TARGET}.")} - set(self._named)):
                raise DataError(f"{self._at(line)}: {min(extra)}, which the first row has not; give all rows the same")
            value = [row.get(name) for name in self._named] or row.get(TARGET)
            if isinstance(value, str):
                value = value.split(SEPARATOR)
            vector = lengths.check(to_vector(value, where), where)
            place = self._place(row, line)
            self.ledger.used(ROWS, "images")
            yield Item(place, (), self._size(place, line), vector=vector)
        names = [name.removeprefix(f"{TARGET}.") for name in self._named]
        self.classes = [(name, name) for name in names] or lengths.classes

    def _with_classes(self, splits: Sequence[str]) -> ItemTable:
        labels = LabelCollector(self._how.labels)
        labels.begin(self._list)
        items = zip(self._with_labels(labels), splits, strict=True)
        table = ItemTable.of(item._replace(split=split) for item, split in items)
        change = labels.resolve()
        self.multi_label, self.classes = labels.is_multi, list(change.classes)
        self.notes = [*self.notes, *labels.notes, *labels.gaps]
        return relabel(table, change)

    def _with_labels(self, labels: LabelCollector) -> Iterator[Item]:
        """All rows, with provisional label codes instead of classes."""
        for line, row in self._rows():
            place = self._place(row, line)
            if self._column not in row and (others := set(row) & set(LABELS)):
                raise DataError(f"{self._at(line)}: {others.pop()}, but rows before it have {self._column}; choose one")
            codes = labels.add(self._label(row), f"{self._at(line)}", typed=self._typed)
            self.ledger.used(ROWS, "images")
            yield Item(place, codes, self._size(place, line))

    def _label(self, row: dict[str, Any]) -> Any:
        value = row.get(self._column)
        if self._column != "labels" or not isinstance(value, str):
            return value
        return [part for part in map(str.strip, value.split(SEPARATOR)) if part]

    def _splits(self) -> list[str]:
        """The split of each row: from the column, else from the folders of its path; see ``SplitFolders``."""
        given, paths, silent = [], [], 0
        for line, row in self._rows():
            paths.append(_path_of(self._place(row, line)))
            if row.get(SPLIT) in (None, ""):
                silent = silent or line
            elif not isinstance(row[SPLIT], str):
                raise DataError(f"{self._at(line)}: the {SPLIT} {row[SPLIT]!r} is not a text such as train")
            else:
                given.append(to_split_name(row[SPLIT], f"{self._at(line)}"))
        if not given:
            made = SplitFolders(paths, self._split_place, self._how.split_from, has_classes=False)
            own = self.path.stem.strip(AROUND) if self.path.is_file() else ""  # not from a folder with metadata files
            if made.is_default and self._how.split_from in ("auto", "names") and is_split_word(own):
                self.split_rule = f"from the name of the manifest ({OPTION} {self._how.split_from})"
                return [SPLIT_WORDS[own.lower()]] * len(paths)
            self.split_rule, self.notes = made.rule, [*self.notes, *made.notes]
            return made.splits
        if silent:
            raise DataError(f"{self._at(silent)}: no {SPLIT}, but other rows have one; fill it in")
        if self._how.split_from != "auto":
            raise ConfigError(f"{self.path} has a column {SPLIT}; --split-from {self._how.split_from} would be ignored")
        self.split_rule = f"from the column {SPLIT}"
        return given

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        path = path_in(item.key) if is_url(item.key) else item.key
        extension = PurePosixPath(path).suffix[1:].lower() or "img"
        return self._bytes_of(item.key), extension

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        return self._bytes_of(item.mask)

    def _bytes_of(self, place: str) -> bytes:
        return self.downloads.read(place) if is_url(place) else (self.root / place).read_bytes()

    def _place(self, row: dict[str, Any], line: int) -> str:
        """The path or URL of a row: ``./a//b.jpg``, ``a/b.jpg`` and ``ROOT/a/b.jpg`` are one image.

        With ROOT in the keys, --holdout would choose other images as soon as the folder moves.
        """
        place = next((str(row[name]) for name in PLACES if row.get(name)), "")
        if not place:
            raise DataError(f"{self._at(line)}: no {' or '.join(PLACES)}")
        if scheme := _SCHEME.match(place):
            place = place.strip()
            if not is_url(place):
                raise DataError(
                    f"{self._at(line)}: {place!r} begins with {scheme[1]}://, but images are fetched with http and "
                    "https only; give such a URL, or fetch the files first and give their paths"
                )
        if is_url(place):
            return place
        place = posixpath.normpath(place)
        return place.removeprefix(self._absolute_root) if posixpath.isabs(place) else place

    def _size(self, place: str, line: int) -> int:
        if is_url(place):
            return UNKNOWN_NUM_BYTES
        try:
            status = (self.root / place).stat()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"{self._at(line)}: {self.root / place} cannot be found ({reason}); relative paths count "
                "from the manifest's folder, or from --root"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{self._at(line)}: {self.root / place} is not a file")
        return status.st_size

    def _at(self, line: int) -> str:
        """The location of a line, for messages."""
        return f"{self.path}:{line}"

    def _first_row(self) -> tuple[int, dict[str, Any]]:
        rows = self._rows()
        first = next(rows, None)
        if first is None:
            raise DataError(f"{self.path} names no image")
        line, row = first
        labels = [self._how.label_column] if self._how.label_column else [name for name in row if name in LABELS]
        targets = [name for name in row if name.partition(".")[0] == TARGET or name == MASK]
        answers = labels if self._how.label_column else [*labels, *targets]
        if not set(row) & set(PLACES) or not set(row) & set(answers):
            raise ConfigError(
                f"{self._at(line)}: the columns {', '.join(row)} hold no {'/'.join(PLACES)} or no "
                f"{self._how.label_column or '/'.join((*LABELS, TARGET, MASK))}"
                f"{hint(list(row), has_place=bool(set(row) & set(PLACES)))}"
            )
        if len(answers) > 1 and not all(name.startswith(f"{TARGET}.") for name in answers):
            raise ConfigError(
                f"{self._at(line)}: the columns {' and '.join(answers)} are two answers for one image; "
                "leave one out, or name the labels with --label-column"
            )
        self._column = answers[0]
        used = {*PLACES, SPLIT, "id", *answers}
        self.notes = [f"column {name} ignored" for name in row if name not in used]
        return line, {name: value for name, value in row.items() if name in used}

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, row) of the file."""
        return rows_of(self.path, self._how.encoding)


def _path_of(place: str) -> str:
    """The part of a path or URL whose folders may denote a split."""
    path = path_in(place) if is_url(place) else place
    return "/".join(part for part in PurePosixPath(path).parts if part not in ("/", ".."))
