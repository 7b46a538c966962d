"""The columns of a parquet file of images: those of the images and the labels, and the names of its classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.class_names import ClassList, class_list
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.names import shown

LABELS = ("label", "labels", "fine_label", "cls")
STATUS = "status"  # of a download, as img2dataset writes it
SUCCESS = "success"
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    label: str


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        image: its bytes; b"": it has none.
        label: as stored in the file.
        failed: the reason that the file records for a missing image.
        name: of the image's original file; "": not stated.
    """

    image: bytes
    label: Any
    failed: str = ""
    name: str = ""


def arrow() -> Any:
    """The module ``pyarrow.parquet``.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError("the source parquet needs pyarrow; install it with: pip install pyarrow") from error
    return pyarrow.parquet


def read_schema(path: Path) -> Any:
    """A file's schema.

    Raises:
        DataError: the file is cut short, damaged, or not parquet.
    """
    return _reading(path, lambda: arrow().read_schema(path))


def choose_columns(schema: Any, path: Path, image: str, label: str) -> Columns:
    """The columns that the user names, or the only possible ones.

    Raises:
        ConfigError: there is no such column, or the choice is ambiguous.
    """
    columns = Columns(image or _image_column(schema, path), label or _label_column(schema, path))
    check_columns(schema, path, columns)
    return columns


def check_columns(schema: Any, path: Path, columns: Columns) -> None:
    """Rejects a file without these columns, or with columns of another type.

    Raises:
        ConfigError: names the column.
    """
    for column in (columns.image, columns.label):
        if schema.names.count(column) != 1:
            number = "no column" if column not in schema.names else "several columns"
            raise ConfigError(f"{shown(path)} has {number} {column!r}; it has {', '.join(schema.names)}")
    kind = schema.field(columns.image).type
    if not _holds_image(kind):
        raise ConfigError(
            f"{shown(path)}: the column {columns.image!r} is of the type {kind}; a column of images is of bytes, or of "
            "{bytes, path}, one image per row"
        )


def other_label_columns(schema: Any, label: str) -> list[str]:
    """Further columns whose names suggest labels."""
    return [name for name in schema.names if name != label and (name in LABELS or name.endswith("_label"))]


def names_of_classes(schema: Any, path: Path, column: str) -> ClassList | None:
    """The names that Hugging Face's writer puts into a file's schema; None: it has none.

    Raises:
        DataError: the metadata are not JSON.
    """
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError as error:
        raise DataError(f"{shown(path)}: the metadata of Hugging Face are not JSON ({error})") from error
    feature: Any = content
    for key in ("info", "features", column):
        feature = feature.get(key, {}) if isinstance(feature, dict) else {}
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
    names = inner.get("names") if isinstance(inner, dict) else None
    if not isinstance(names, list) or not names:
        return None
    return class_list([(str(number), str(name)) for number, name in enumerate(names)], shown(path))


def rows_of(path: Path, columns: Columns) -> Iterator[Row]:
    """Every row of a file.

    Raises:
        DataError: the file is damaged, or a row has the path of an image instead of its bytes.
    """
    file = _reading(path, lambda: arrow().ParquetFile(path))
    names = [columns.image, columns.label]
    names += [STATUS] if STATUS in file.schema_arrow.names and STATUS not in names else []
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names)
    number = 0
    while (batch := _reading(path, lambda: next(batches, None))) is not None:
        values = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in names]
        for image, label, *status in zip(*values, strict=True):
            yield _row(image, label, str(status[0]) if status else "", f"{shown(path)}, row {number}")
            number += 1


def _row(image: Any, label: Any, status: str, where: str) -> Row:
    is_struct = isinstance(image, dict)
    data = image.get("bytes") if is_struct else image
    if data:
        return Row(data, label, name=str(image.get("path") or "") if is_struct else "")
    if status and status != SUCCESS:
        return Row(b"", label, f"not downloaded ({status})")
    if isinstance(image, dict) and image.get("path"):
        raise DataError(
            f"{where}: no bytes of an image, only the path {image['path']!r}; write the file again with the images in "
            "it, or pack a manifest of the paths"
        )
    return Row(b"", label)


def _reading(path: Path, read: Any) -> Any:
    """Calls a function of pyarrow, and reports its errors as errors in the file."""
    arrow()
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowException, OSError) as error:
        detail = str(error).splitlines()[0]
        raise DataError(f"{shown(path)}: cut short, damaged, or not parquet ({detail}); copy it again") from error


def _holds_image(kind: Any) -> bool:
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_struct(kind):
        return any(field.name == "bytes" and _holds_image(field.type) for field in kind)
    views = getattr(kinds, "is_binary_view", lambda _: False)
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or views(kind)


def _image_column(schema: Any, path: Path) -> str:
    names = [field.name for field in schema if "binary" in str(field.type)]
    if len(names) != 1:
        found = f"{len(names)} columns hold bytes ({', '.join(names)})" if names else "no column holds bytes"
        raise ConfigError(f"{shown(path)}: {found}; say which one the images are in with --image-column")
    return names[0]


def _label_column(schema: Any, path: Path) -> str:
    names = [name for name in LABELS if name in schema.names]
    if not names:
        raise ConfigError(
            f"{shown(path)}: say which column the labels are in with --label-column: {', '.join(schema.names)}"
        )
    return names[0]
