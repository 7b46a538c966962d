"""Parquet files as on Hugging Face: a column of images as {bytes, path} (or bytes), and one of labels or numbers.

A single row cannot be read without reading hundreds of neighbours, so each file is unpacked once to plain bytes in the
pack's working folder, which takes the same amount of space again until the pack is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources.class_names import ClassList
from pipelines.sources.entries import files_fingerprint
from pipelines.sources.file_patterns import distinct_names, find_files
from pipelines.sources.label_classes import LabelCollector, LabelOptions
from pipelines.sources.label_values import VectorLength, decode_label, read_label, to_vector
from pipelines.sources.options import Option, SourceOptions
from pipelines.sources.parquet_columns import (
    check_columns,
    choose_columns,
    names_of_classes,
    other_label_columns,
    read_schema,
    rows_of,
)
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.splits import splits_of_files
from pipelines.sources.table import ItemTable, relabel
from pipelines.sources.tars import RangeReader
from pretrain.data.ledger import Ledger
from pretrain.errors import ConfigError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic
from pretrain.names import to_bytes

OPTIONS = (
    Option("image_column", "parquet: column of the images", decides_list=True),
    Option("target_column", "parquet: column of the numbers of a regression, in place of labels", decides_list=True),
)
KIND = "parquet rows"
MAGIC = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif"}


class ParquetSource(Source):
    """Rows of parquet files; the split is found from a file's folders or name; see pipelines/sources/splits.py.

    Args:
        patterns: files, folders, or patterns with braces and wildcards.
        how: how labels, classes and splits are read. The label column is of integers, texts, or lists of either; "":
            label, labels, or fine_label.
        image_column: column of the images; "": the only one that contains bytes.
        target_column: column of a number, or of a list of them, used instead of labels; "": there are labels.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        how: SourceOptions | None = None,
        *,
        image_column: str = "",
        target_column: str = "",
    ) -> None:
        self._how = how = how or SourceOptions()
        self._beside = Ledger()
        found = find_files(patterns, ".parquet", self._beside)
        self.paths = [Path(file.url) for file in found]
        self._prefix = [end.removesuffix(".parquet") for end in distinct_names([file.url for file in found])]
        self._splits = splits_of_files([file.place for file in found], how.split_from)
        self.split_rule, self.notes = self._splits.rule, list(self._splits.notes)
        self.name = how.name or self.paths[0].resolve().parent.name
        self.origin, self.licence = f"parquet {' '.join(patterns)}", NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self._folder: Path | None = None
        self._reader = RangeReader()
        if how.label_column and target_column:
            raise ConfigError("--label-column and --target-column are two answers for one image; leave one out")
        self.target = "vector" if target_column else "labels"
        schemas = [read_schema(path) for path in self.paths]
        self._columns = choose_columns(schemas[0], self.paths[0], image_column, target_column or how.label_column)
        for schema, path in zip(schemas, self.paths, strict=True):
            check_columns(schema, path, self._columns)
        self.image_column, self.label_column = self._columns.image, self._columns.label
        self._lists = self._class_lists(schemas)
        self._others = [] if how.label_column else other_label_columns(schemas[0], self.label_column)

    def _class_lists(self, schemas: list[Any]) -> list[ClassList | None]:
        """The list of classes of each file."""
        given = self._how.class_names
        if self.target == "vector":
            if given or self._how.labels != LabelOptions():
                raise ConfigError("--class-names, --labels-are and --num-classes are for labels, not --target-column")
            return [None] * len(schemas)
        column = self.label_column
        found = [names_of_classes(schema, path, column) for schema, path in zip(schemas, self.paths, strict=True)]
        if given is None:
            return found
        named = [one for one in found if one is not None]
        if len(named) == len(found):
            raise ConfigError(f"--class-names {given} would be ignored: {named[0].where} names its classes itself")
        names = self._how.class_list()
        return [one or names for one in found]

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return files_fingerprint(self.paths)

    def units(self) -> list[str]:
        """See ``Source.units``."""
        return [str(path) for path in self.paths]

    def use(self, folder: Path) -> None:
        """See ``Source.use``."""
        self._folder = folder

    def prepare(self, unit: str, folder: Path) -> None:
        """Unpacks a file: the images' concatenated bytes, their sizes, names and labels, and rows without an image."""
        base = folder / _stem(Path(unit))
        temporary = base.with_suffix(f".bytes{TEMPORARY_SUFFIX}")
        sizes: list[int] = []
        labels: list[Any] = []
        names: list[str] = []
        failed: dict[int, str] = {}
        with open(temporary, "wb") as out:
            for number, row in enumerate(rows_of(Path(unit), self._columns)):
                if row.failed:
                    failed[number] = row.failed
                sizes.append(len(row.image))
                labels.append(self._as_json(row.label, f"{unit}, row {number}"))
                names.append(row.name)
                out.write(row.image)
        laid_out = {"sizes": sizes, "labels": labels, "names": names, "failed": failed}
        write_atomic(base.with_suffix(".json"), json.dumps(laid_out, default=str))
        temporary.rename(base.with_suffix(".bytes"))

    def _as_json(self, label: Any, where: str) -> Any:
        """A label that can be stored: anything but a number, a text or a list of them is rejected here."""
        if self.target == "labels":
            read_label(label, f"{where}, column {self.label_column}", typed=True)
        if isinstance(label, bytes):
            return decode_label(label, where)
        return [self._as_json(one, where) for one in label] if isinstance(label, list) else label

    def items(self) -> Iterable[Item]:
        """See ``Source.items``."""
        self.ledger = Ledger()
        self.ledger.merge(self._beside)
        self.ledger.found(KIND, 0)
        return self._with_vectors() if self.target == "vector" else self._with_labels()

    def _with_vectors(self) -> Iterator[Item]:
        lengths = VectorLength()
        for item, value, where in self._rows():
            yield item._replace(vector=lengths.check(to_vector(value, where), where))
        self.classes = [(self.label_column, self.label_column)] if lengths.length == 1 else lengths.classes

    def _with_labels(self) -> ItemTable:
        labels = LabelCollector(self._how.labels)
        table = ItemTable.of(self._provisional(labels))
        change = labels.resolve()
        self.multi_label, self.classes = labels.is_multi, list(change.classes)
        self.notes = [*self._splits.notes, *labels.notes, *labels.gaps]
        if self._others:
            self.notes.append(
                f"labels are those of the column {self.label_column}; --label-column takes another: "
                f"{', '.join(self._others)}"
            )
        return relabel(table, change)

    def _provisional(self, labels: LabelCollector) -> Iterator[Item]:
        """All rows, with provisional label codes instead of classes."""
        for item, value, where in self._rows():
            labels.begin(self._lists[item.part])
            yield item._replace(labels=labels.add(value, where, typed=True))

    def _rows(self) -> Iterator[tuple[Item, Any, str]]:
        """(item without label or target, its label or target, its location) of every row that has an image."""
        for part, path in enumerate(self.paths):
            laid_out = self._laid_out(path)
            starts = np.cumsum([0, *laid_out["sizes"]]).tolist()
            failed, sizes = laid_out.get("failed", {}), laid_out["sizes"]
            names = laid_out.get("names") or [""] * len(sizes)  # an earlier version unpacked the file without them
            for row, (size, value, name) in enumerate(zip(sizes, laid_out["labels"], names, strict=True)):
                key = f"{self._prefix[part]}/{row:08d}"
                self.ledger.found(KIND)
                if reason := failed.get(str(row)):
                    self.ledger.lost(KIND, reason, key)
                    continue
                self.ledger.used(KIND, "images")
                where = f"{path}, row {row}, column {self.label_column}"
                split = self._splits.names[part]
                yield Item(key, (), size, split, part, starts[row], name=name), value, where

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        assert self._folder is not None
        path = (self._folder / _stem(self.paths[item.part])).with_suffix(".bytes")
        data = self._reader.read(path, item.offset, item.num_bytes)
        return data, MAGIC.get(data[:2], "img")

    def _laid_out(self, path: Path) -> dict[str, Any]:
        assert self._folder is not None
        return json.loads((self._folder / _stem(path)).with_suffix(".json").read_bytes())


def _stem(path: Path) -> str:
    return hashlib.blake2b(to_bytes(str(path)), digest_size=12).hexdigest()
