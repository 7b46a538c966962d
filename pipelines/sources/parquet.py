"""Parquet files as on Hugging Face: a column of images as {bytes, path} (or bytes), and one of labels or numbers.

Row groups cannot be read at random without reading hundreds of neighbours, so each file is laid out once as plain bytes
in the pack's working folder, which takes as much room again until the pack is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.sources.names import find_files, split_of
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pipelines.sources.tars import RangeReader, file_fingerprint
from pipelines.sources.vectors import VectorLength, to_vector
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic

ROWS_AT_ONCE = 64
UNLABELLED = (None, -1)  # as in published test splits: left out
MAGIC = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif", b"BM": "bmp", b"II": "tif", b"MM": "tif"}


class ParquetSource(Source):
    """Rows of parquet files; the split is that of a file's name, such as ``train-00000-of-00004.parquet``.

    Args:
        patterns: files, folders, or patterns with braces and wildcards.
        image_column: column of the images; "": the only one with bytes in it.
        label_column: column of the labels, an integer, a text, or a list of either; "": label, labels, or fine_label.
        target_column: column of a number, or of a list of them, that is there in the place of labels; "": labels are.
        name: of the data set.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        image_column: str = "",
        label_column: str = "",
        target_column: str = "",
        name: str = "",
    ) -> None:
        self.paths = [Path(path) for path in find_files(patterns, ".parquet")]
        self.name = name or self.paths[0].resolve().parent.name
        self.origin = f"parquet {' '.join(patterns)}"
        self.licence = NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._folder: Path | None = None
        self._reader = RangeReader()
        schema = _pyarrow().read_schema(self.paths[0])
        self.image_column = image_column or _image_column(schema, self.paths[0])
        if label_column and target_column:
            raise ConfigError("--label-column and --target-column are two answers for one image; leave one out")
        self.target = "vector" if target_column else "labels"
        self.label_column = target_column or label_column or _label_column(schema, self.paths[0])
        for column in (self.image_column, self.label_column):
            if column not in schema.names:
                raise ConfigError(f"{self.paths[0]} has no column {column!r}; it has {', '.join(schema.names)}")
        is_list = str(schema.field(self.label_column).type).startswith(("list", "large_list"))
        self.multi_label = self.target == "labels" and is_list
        self._names = _class_names(schema.metadata or {}, self.label_column)

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return file_fingerprint(self.paths)

    def units(self) -> list[str]:
        """See ``Source.units``."""
        return [str(path) for path in self.paths]

    def use(self, folder: Path) -> None:
        """See ``Source.use``."""
        self._folder = folder

    def prepare(self, unit: str, folder: Path) -> None:
        """Lays out one file: the images' bytes one behind the other, their sizes, and the labels."""
        base = folder / _stem(Path(unit))
        temporary = base.with_suffix(f".bytes{TEMPORARY_SUFFIX}")
        sizes: list[int] = []
        labels: list[Any] = []
        columns = [self.image_column, self.label_column]
        with open(temporary, "wb") as out:
            for batch in _pyarrow().ParquetFile(unit).iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                for image, label in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                    data = (image or {}).get("bytes") if isinstance(image, dict) else image
                    sizes.append(len(data or b""))
                    labels.append(label)
                    out.write(data or b"")
        write_atomic(base.with_suffix(".json"), json.dumps({"sizes": sizes, "labels": labels}))
        temporary.rename(base.with_suffix(".bytes"))

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        return self._with_vectors() if self.target == "vector" else self._with_labels()

    def _with_vectors(self) -> Iterator[Item]:
        lengths = VectorLength()
        for part, path in enumerate(self.paths):
            laid_out = self._laid_out(path)
            starts = np.cumsum([0, *laid_out["sizes"]]).tolist()
            for row, (size, value) in enumerate(zip(laid_out["sizes"], laid_out["labels"], strict=True)):
                where = f"{path}, row {row}, column {self.label_column}"
                vector = lengths.check(to_vector(value, where), where)
                yield Item(f"{path.stem}/{row:08d}", (), size, split_of(str(path)), part, starts[row], vector)
        self.classes = [(self.label_column, self.label_column)] if lengths.length == 1 else lengths.classes

    def _with_labels(self) -> Iterator[Item]:
        index = self._index_of_labels()
        for part, path in enumerate(self.paths):
            laid_out = self._laid_out(path)
            starts = np.cumsum([0, *laid_out["sizes"]]).tolist()
            for row, (size, label) in enumerate(zip(laid_out["sizes"], laid_out["labels"], strict=True)):
                texts = [str(one) for one in _as_list(label) if one not in UNLABELLED]
                if any(text not in index for text in texts):
                    raise DataError(
                        f"{path}, row {row}: {label!r} in column {self.label_column} is none of the classes"
                    )
                labels = tuple(dict.fromkeys(index[text] for text in texts))
                yield Item(f"{path.stem}/{row:08d}", labels, size, split_of(str(path)), part, starts[row])

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        assert self._folder is not None
        path = (self._folder / _stem(self.paths[item.part])).with_suffix(".bytes")
        data = self._reader.read(path, item.offset, item.num_bytes)
        return data, MAGIC.get(data[:2], "img")

    def _laid_out(self, path: Path) -> dict[str, Any]:
        assert self._folder is not None
        return json.loads((self._folder / _stem(path)).with_suffix(".json").read_bytes())

    def _index_of_labels(self) -> dict[str, int]:
        """Label as text → class. Without names in the file, integers are numbered up to the largest, texts by name."""
        if self._names:
            self.classes = [(str(number), name) for number, name in enumerate(self._names)]
        else:
            seen = {label for path in self.paths for row in self._laid_out(path)["labels"] for label in _as_list(row)}
            seen -= set(UNLABELLED)
            if all(isinstance(label, int) for label in seen):
                self.classes = [(str(number), str(number)) for number in range(max(seen, default=-1) + 1)]
            else:
                self.classes = [(name, name) for name in sorted(map(str, seen))]
        return {identifier: number for number, (identifier, _) in enumerate(self.classes)}


def _as_list(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _stem(path: Path) -> str:
    return hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=12).hexdigest()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError("the source parquet needs pyarrow; install it with: pip install pyarrow") from error
    return pyarrow.parquet


def _image_column(schema: Any, path: Path) -> str:
    names = [field.name for field in schema if "binary" in str(field.type)]
    if len(names) != 1:
        found = f"{len(names)} columns hold bytes ({', '.join(names)})" if names else "no column holds bytes"
        raise ConfigError(f"{path}: {found}; say which one the images are in with --image-column")
    return names[0]


def _label_column(schema: Any, path: Path) -> str:
    names = [name for name in ("label", "labels", "fine_label", "cls") if name in schema.names]
    if not names:
        raise ConfigError(f"{path}: say which column the labels are in with --label-column: {', '.join(schema.names)}")
    return names[0]


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """The names that Hugging Face's writer puts into the schema."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column, {})
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    inner = feature.get("feature", feature)
    return inner.get("names", []) if isinstance(inner, dict) else []
