"""The rows of a table of images: CSV, TSV or JSON lines, parsed strictly so that no value is lost."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pretrain.data.storage.classes import repeated
from pretrain.errors import ConfigError, DataError
from pretrain.names import shown
from pretrain.text_files import UTF8, encoding_of

SUFFIXES = (".csv", ".tsv", ".jsonl")
LONGEST_FIELD = 1 << 24  # characters; Python's default of 128 KiB is too small for some lists of labels
LABEL_LIKE = ("category", "class", "class_name", "classname", "cls", "species", "label_name", "y")
PLACE_LIKE = ("filename", "file", "filepath", "imagepath", "imagefile", "imagename", "img", "imgpath")
Row = dict[str, Any]


def is_json(path: Path) -> bool:
    """Whether its values are typed; those of CSV and TSV are all texts."""
    return path.suffix.lower() == ".jsonl"


def rows_of(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, Row]]:
    """(line, row) of the file; empty lines are skipped.

    Args:
        path: the file.
        encoding: of a file without a byte-order mark.

    Raises:
        ConfigError: it has no usable header. DataError: it cannot be read; names the line.
    """
    line = 0
    try:
        with open(path, encoding=encoding_of(path, encoding), newline="" if not is_json(path) else None) as file:
            for line, row in _objects(file, path) if is_json(path) else _cells(file, path):
                yield line, row
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(path)}:{_line_that_fails(path, encoding)}: not {encoding.upper()} text (byte "
            f"0x{error.object[error.start]:02x}); save it as UTF-8, or name its encoding with --encoding, "
            "such as cp949 or latin-1"
        ) from error
    except UnicodeError as error:
        raise DataError(f"{shown(path)}:{line + 1} or below: not text ({error}); save it as UTF-8") from error


def _line_that_fails(path: Path, encoding: str) -> int:
    """The first line that cannot be decoded; 1 if only the file as a whole cannot."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def _cells(file: TextIO, path: Path) -> Iterator[tuple[int, Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    before = csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header: list[str] = []
        for cells in reader:
            if not cells:
                continue
            if not header:
                header = _header(cells, path, reader.line_num)
            elif len(cells) != len(header):
                raise DataError(
                    f"{shown(path)}:{reader.line_num}: the header has {len(header)} columns, this line {len(cells)}; "
                    f"write every value, and one that holds a {'comma' if delimiter == ',' else 'tab'} in quotes, such "
                    'as "crane, bird"'
                )
            else:
                yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if name}
    except csv.Error as error:
        raise DataError(
            f"{shown(path)}:{reader.line_num}: {error}; is a quotation mark missing or too much?"
        ) from error
    finally:
        csv.field_size_limit(before)


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    if twice := repeated([name for name in header if name]):
        raise ConfigError(f"{shown(path)}:{line}: two columns are called {twice[0]!r}; rename one")
    return header


def _objects(file: TextIO, path: Path) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shown(path)}:{line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f'{shown(path)}:{line}: a line must be an object such as {{"path": …, "label": …}}')
        yield line, row


def hint(header: list[str], *, has_place: bool) -> str:
    """The hint for a header without a known column of images, or of labels.

    Args:
        header: the columns.
        has_place: one of them names the images.
    """
    if len(header) == 1 and any(mark in header[0] for mark in (";", "\t", "|")):
        return "; are its values separated by something else than commas? Save it with commas, or tabs as .tsv"
    if has_place:
        like = [name for name in header if name.lower() in LABEL_LIKE]
        return f"; --label-column names the column of the labels{f', such as {like[0]}' if like else ''}"
    like = [name for name in header if name.lower().replace("_", "") in PLACE_LIKE]
    renamed = f"rename the column {like[0]} to path" if like else "the first line must name the columns"
    return f"; {renamed}, such as path,label; --label-column names a column of labels that is called otherwise"
