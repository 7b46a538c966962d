"""A table of images: CSV, TSV or JSON lines, with a path or URL, labels or numbers, and perhaps a split.

Columns: ``path`` or ``url`` (or ``image``, either) · ``label`` or ``labels`` · ``split`` · ``id``
In the place of labels, for a regression: ``target``, or one column ``target.NAME`` for each number; for segmentation:
``mask``, the path of a PNG.
"""

from __future__ import annotations

import csv
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.sources.names import is_url
from pipelines.sources.protocol import NOT_STATED, UNKNOWN_NUM_BYTES, Item, Source
from pipelines.sources.vectors import VectorLength, to_vector
from pretrain.errors import ConfigError, DataError
from pretrain.files import file_digest

SEPARATOR = "|"
PLACES = ("path", "url", "image")
LABELS = ("label", "labels")
TARGET = "target"
MASK = "mask"
KNOWN = frozenset([*PLACES, *LABELS, TARGET, MASK, "split", "id"])
TIMEOUT_S = 30
TRIES = 4


class ManifestSource(Source):
    """The images that a file names; paths count from its folder, or from ``root``.

    In CSV and TSV, ``labels`` and ``target`` separate their parts by ``|``; in JSON lines they are lists. Classes are
    numbered by name, or as numbers where all labels are numbers.

    Args:
        path: the file: .csv, .tsv or .jsonl.
        root: where relative paths count from.
        name: of the data set.
        classes: (id, name) in the order of the masks' numbers, where the manifest names masks.
    """

    def __init__(
        self, path: Path, *, root: Path | None = None, name: str = "", classes: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.path, self.root = path, root or path.parent
        self.name = name or path.stem
        self.licence = NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []
        if path.suffix not in (".csv", ".tsv", ".jsonl"):
            raise ConfigError(f"{path}: a manifest is a .csv, .tsv or .jsonl")
        if not path.is_file():
            raise DataError(f"{path} does not exist; give the .csv, .tsv or .jsonl that names the images")
        self.origin = f"manifest {path} ({file_digest(path)})"
        _, row = self._first_row()
        self._named = [name for name in row if name.startswith(f"{TARGET}.")]
        self.multi_label = "labels" in row
        self.target = "vector" if self._named or TARGET in row else "mask" if MASK in row else "labels"
        if (self.target == "mask") != bool(classes):
            problem = (
                "masks need --class-names FILE, a class per line"
                if not classes
                else ("--class-names is for masks; the names of labels and numbers are those of the manifest")
            )
            raise ConfigError(f"{path}: {problem}")
        self.classes = list(classes)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        makers = {"vector": self._with_vectors, "mask": self._with_masks, "labels": self._with_labels}
        return makers[self.target]()

    def _with_masks(self) -> Iterator[Item]:
        for line, row in self._rows():
            place, mask = self._place(row, line), str(row.get(MASK) or "")
            if not mask:
                raise DataError(f"{self.path}:{line}: no {MASK}")
            size = self._size(place, line) + self._size(mask, line)
            yield Item(place, (), size, str(row.get("split") or "train"), mask=mask)

    def _with_vectors(self) -> Iterator[Item]:
        lengths = VectorLength()
        for line, row in self._rows():
            where = f"{self.path}:{line}"
            value = [row.get(name) for name in self._named] or row.get(TARGET)
            if isinstance(value, str):
                value = value.split(SEPARATOR)
            vector = lengths.check(to_vector(value, where), where)
            place = self._place(row, line)
            yield Item(place, (), self._size(place, line), str(row.get("split") or "train"), vector=vector)
        names = [name.removeprefix(f"{TARGET}.") for name in self._named]
        self.classes = [(name, name) for name in names] or lengths.classes

    def _with_labels(self) -> Iterator[Item]:
        names = {name for line, row in self._rows() for name in self._labels(row, line)}
        if all(name.isdecimal() for name in names):
            self.classes = [(str(number), str(number)) for number in range(max(map(int, names), default=-1) + 1)]
        else:
            self.classes = [(name, name) for name in sorted(names)]
        index = {identifier: number for number, (identifier, _) in enumerate(self.classes)}
        for line, row in self._rows():
            place = self._place(row, line)
            labels = tuple(dict.fromkeys(index[name] for name in self._labels(row, line)))
            yield Item(place, labels, self._size(place, line), str(row.get("split") or "train"))

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        path = urllib.parse.urlsplit(item.key).path if is_url(item.key) else item.key
        extension = PurePosixPath(path).suffix[1:].lower() or "img"
        return (_download(item.key) if is_url(item.key) else (self.root / item.key).read_bytes()), extension

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        return _download(item.mask) if is_url(item.mask) else (self.root / item.mask).read_bytes()

    def _place(self, row: dict[str, Any], line: int) -> str:
        place = next((str(row[name]) for name in PLACES if row.get(name)), "")
        if not place:
            raise DataError(f"{self.path}:{line}: no {' or '.join(PLACES)}")
        return place

    def _size(self, place: str, line: int) -> int:
        if is_url(place):
            return UNKNOWN_NUM_BYTES
        try:
            return (self.root / place).stat().st_size
        except OSError as error:
            raise DataError(
                f"{self.path}:{line}: {self.root / place} cannot be found ({error.strerror}); relative paths count "
                "from the manifest's folder, or from --root"
            ) from error

    def _labels(self, row: dict[str, Any], line: int) -> list[str]:
        if "labels" in row:
            value = row["labels"]
            names = value if isinstance(value, list) else str(value or "").split(SEPARATOR)
        else:
            names = [row.get("label")]
        texts = [str(name).strip() for name in names if name is not None and str(name).strip()]
        if not texts:
            raise DataError(f"{self.path}:{line}: no label")
        return texts

    def _first_row(self) -> tuple[int, dict[str, Any]]:
        rows = self._rows()
        first = next(rows, None)
        if first is None:
            raise DataError(f"{self.path} names no image")
        line, row = first
        labels = sorted(set(row) & set(LABELS))
        targets = [name for name in row if name.partition(".")[0] == TARGET or name == MASK]
        if not set(row) & set(PLACES) or not (labels or targets):
            raise ConfigError(
                f"{self.path}:{line}: the columns {', '.join(row)} hold no {'/'.join(PLACES)} or no "
                f"{'/'.join((*LABELS, TARGET, MASK))}"
            )
        if (labels and targets) or ({TARGET, MASK} & set(targets) and len(targets) > 1):
            raise ConfigError(
                f"{self.path}:{line}: the columns {' and '.join((*labels, *targets))} are two answers for one image; "
                "leave one out"
            )
        self.notes = [f"column {name} ignored" for name in row if name not in KNOWN and name not in targets]
        return first

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, row) of the file."""
        with open(self.path, encoding="utf-8", newline="") as file:
            if self.path.suffix == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, self._parsed(text, line)
            else:
                reader = csv.DictReader(file, delimiter="\t" if self.path.suffix == ".tsv" else ",")
                yield from ((reader.line_num, {key: value for key, value in row.items() if key}) for row in reader)

    def _parsed(self, text: str, line: int) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.path}:{line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f'{self.path}:{line}: a line must be an object such as {{"path": …, "label": …}}')
        return row


def _download(url: str) -> bytes:
    """The bytes behind an address, asked for a few times with growing pauses."""
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                data = answer.read()
                if int(answer.headers.get("Content-Length", len(data))) == len(data):
                    return data
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise OSError(f"HTTP {error.code}") from error
        except (OSError, ValueError):
            pass
        time.sleep(0.25 * 4**attempt if attempt < TRIES - 1 else 0)
    raise OSError(f"no answer after {TRIES} tries")
