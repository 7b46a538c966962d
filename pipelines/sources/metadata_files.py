"""Labels in a table next to the images, as Hugging Face's ImageFolder has them: metadata.csv or metadata.jsonl.

Source: Hugging Face, "Create an image dataset": a column ``file_name`` with paths from the table's folder; a table may
be in the root or in the folder of a split, and takes the place of class folders.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.entries import IMAGE_EXTENSIONS, Walk, files_fingerprint
from pipelines.sources.folder import FolderSource
from pipelines.sources.manifest import LABELS, MASK, TARGET, ManifestSource
from pipelines.sources.manifest_rows import Row, is_json, rows_of
from pipelines.sources.options import SourceOptions
from pipelines.sources.protocol import Item, Source
from pretrain.errors import ConfigError, DataError
from pretrain.files import file_digest

NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"
UNLISTED = "an image that no metadata file names"


def find_metadata(root: Path) -> list[Path]:
    """The tables in a folder and in its direct subfolders."""
    folders = [root]
    if root.is_dir():
        folders += sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
    return [folder / name for folder in folders for name in NAMES if (folder / name).is_file()]


def has_labels(tables: list[Path], label_column: str, encoding: str) -> bool:
    """Whether the first row of the first table has a target; a table of captions has none."""
    for _, row in rows_of(tables[0], encoding):
        known = {name.partition(".")[0] for name in row}
        return bool(label_column or known & {*LABELS, TARGET, MASK})
    raise DataError(f"{tables[0]} names no image")


def open_folder(root: Path, how: SourceOptions, *, nested_labels: bool) -> Source:
    """A folder whose labels are in tables next to the images, if there are such tables, else a folder of classes.

    Raises:
        ConfigError: an option would be ignored.
    """
    tables = find_metadata(root)
    if tables and has_labels(tables, how.label_column, how.encoding):
        if nested_labels:
            raise ConfigError(f"--nested-labels would be ignored: the labels are those of {tables[0]}")
        return MetadataSource(root, tables, how)
    if how.about_labels:
        needs = f"{tables[0]} has no labels" if tables else f"{root} holds no metadata.csv or metadata.jsonl"
        raise ConfigError(f"{how.about_labels[0]} is about labels in a table, but {needs}: it would be ignored")
    source = FolderSource(root, how, nested_labels=nested_labels)
    if tables:
        source.remarks = [f"{tables[0]} has no column of labels (--label-column): the folders are the classes"]
    return source


class MetadataSource(ManifestSource):
    """The images that such tables list, in the splits of their folders.

    Args:
        root: the folder; keys of images are paths below it.
        tables: what ``find_metadata`` found.
        how: how labels, classes and splits are read; see ``SourceOptions``.
    """

    def __init__(  # pyright: ignore[reportMissingSuperCall]  # the tables are several
        self, root: Path, tables: list[Path], how: SourceOptions
    ) -> None:
        if len({is_json(table) for table in tables}) > 1:
            raise ConfigError(f"{root} holds tables of several kinds ({', '.join(map(str, tables))}); keep one kind")
        self.path, self.root, self.tables, self.name = root, root, tables, how.name or root.resolve().name
        self.origin = f"folder {root.resolve()} with {', '.join(str(table.relative_to(root)) for table in tables)}"
        self._split_place = str(root)
        self._begin(how, typed=is_json(tables[0]))
        names = ", ".join(dict.fromkeys(table.name for table in tables))
        self.notes.append(f"labels are those of {names}, not the folders; move it away to take folders as classes")

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        files = [file for file in Walk(self.root).files() if file.extension in IMAGE_EXTENSIONS]
        words = (*map(file_digest, self.tables), *(file.path for file in files), repr(self._list))
        return files_fingerprint((self.root / file.path for file in files), *words)

    def items(self) -> Iterable[Item]:
        """See ``Source.items``; every entry of the folder is recorded in the ledger."""
        walk, tables = Walk(self.root), {str(table.relative_to(self.root)) for table in self.tables}
        rows = [(row[FILE_NAME], row.get(MASK)) for _, row in self._rows()]
        named, masks = {name for name, _ in rows}, {mask for _, mask in rows}
        for file in walk.files():
            if file.path in named:
                walk.used(file)
            elif file.path in masks:
                walk.used(file, "masks")
            elif file.path in tables:
                walk.used(file, "tables")
            else:
                walk.left_out(file, UNLISTED if file.extension in IMAGE_EXTENSIONS else "")
        items = super().items()
        self.ledger.merge(walk.ledger)
        return items

    def _rows(self) -> Iterator[tuple[Any, Row]]:
        """(where, row) of all tables; ``file_name`` is relative to the root."""
        for table in self.tables:
            folder = table.parent.relative_to(self.root).as_posix()
            for line, row in rows_of(table, self._how.encoding):
                name = row.get(FILE_NAME)
                if not isinstance(name, str) or not name:
                    raise DataError(f"{table}:{line}: no {FILE_NAME}; it has {', '.join(row)}")
                path = posixpath.normpath(posixpath.join(folder, name))
                if path.startswith(("/", "..")):
                    raise DataError(f"{table}:{line}: {name} is not below {self.root}")
                masks = {MASK: posixpath.join(folder, row[MASK])} if isinstance(row.get(MASK), str) else {}
                yield f"{table}:{line}", row | {FILE_NAME: path} | masks

    def _at(self, line: Any) -> str:
        return str(line)
