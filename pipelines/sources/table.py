"""The list of a source's images as columns: about 70 bytes per image, on disk if several processes share it.

Labels are in CSR form: row i has ``labels[label_starts[i]:label_starts[i + 1]]``. Keys likewise, as UTF-8 bytes. A list
of vectors has a column ``vectors`` of N · D numbers too, a list with masks the places of those, like the keys, and so
has a list of images with names other than their keys. A list with images that have none of the classes marks them in
``negatives``.
``relabel`` replaces the classes of a list by others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.protocol import Item
from pretrain import seeds
from pretrain.errors import DataError
from pretrain.files import digest, sync, write_atomic
from pretrain.names import from_bytes, to_bytes

MAX_SPLITS = 255
SPLITS_FILE = "splits.json"
_DTYPES = {
    "keys": np.uint8,
    "key_starts": np.int64,
    "labels": np.int32,
    "label_starts": np.int64,
    "num_bytes": np.int64,
    "splits": np.uint8,
    "parts": np.int32,
    "offsets": np.int64,
}
_OPTIONAL_COLUMNS = ("vectors", "masks", "mask_starts", "names", "name_starts", "negatives")


class ItemTable:
    """Items as columns.

    Args:
        columns: name → array, see the module's legend.
        split_names: what the numbers in ``splits`` mean.
    """

    def __init__(self, columns: dict[str, NDArray[Any]], split_names: Sequence[str]) -> None:
        self.columns = columns
        self.split_names = tuple(split_names)

    def __len__(self) -> int:
        return len(self.columns["num_bytes"])

    def __iter__(self) -> Iterator[Item]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> Item:
        columns = self.columns
        first, last = columns["label_starts"][row], columns["label_starts"][row + 1]
        return Item(
            key=self.key(row),
            labels=tuple(columns["labels"][first:last].tolist()),
            num_bytes=int(columns["num_bytes"][row]),
            split=self.split_names[columns["splits"][row]],
            part=int(columns["parts"][row]),
            offset=int(columns["offsets"][row]),
            vector=self._vector(row),
            mask=from_bytes(self._bytes_of("mask", row)),
            name=from_bytes(self._bytes_of("name", row)),
        )

    def _bytes_of(self, text: str, row: int) -> bytes:
        """One of the texts of a row: its "key", "mask" or "name"; empty if the list has no such column."""
        if (values := self.columns.get(f"{text}s")) is None:
            return b""
        starts = self.columns[f"{text}_starts"]
        return values[starts[row] : starts[row + 1]].tobytes()

    def _vector(self, row: int) -> tuple[float, ...]:
        if "vectors" not in self.columns:
            return ()
        return tuple(self.columns["vectors"].reshape(len(self), -1)[row].tolist())

    def key(self, row: int) -> str:
        """The key of a row."""
        return from_bytes(self._bytes_of("key", row))

    @property
    def num_labels(self) -> NDArray[np.int64]:
        """Labels per row."""
        return np.diff(self.columns["label_starts"])

    @property
    def are_negatives(self) -> NDArray[np.bool_]:
        """Of each row: the source says that it has none of the classes, and no change has given it one."""
        marked = self.columns.get("negatives")
        without = self.num_labels == 0
        return np.zeros_like(without) if marked is None else without & (marked > 0)

    def with_labels(self, labels: NDArray[np.int32], label_starts: NDArray[np.int64]) -> ItemTable:
        """The same rows with other labels."""
        return ItemTable(self.columns | {"labels": labels, "label_starts": label_starts}, self.split_names)

    def key_hashes(self) -> NDArray[np.uint64]:
        """A 64-bit hash of every key, of which shuffle and hold-out are functions."""
        keys, starts = self.columns["keys"].tobytes(), self.columns["key_starts"].tolist()
        hashes = array("Q")
        for first, last in pairwise(starts):
            block = hashlib.blake2b(keys[first:last], digest_size=8).digest()
            hashes.append(int.from_bytes(block, "little"))
        return np.array(hashes, dtype=np.uint64)

    def check_unique(self, hashes: NDArray[np.uint64]) -> None:
        """Rejects a key that occurs twice.

        Raises:
            DataError: names it.
        """
        order = np.argsort(hashes, kind="stable")
        for place in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
            first, second = int(order[place]), int(order[place + 1])
            if self._bytes_of("key", first) == self._bytes_of("key", second):
                raise DataError(f"the source lists {self.key(first)!r} twice; keys must be unique")

    def listing(self, hashes: NDArray[np.uint64], classes: Sequence[tuple[str, str]]) -> str:
        """Digest of the items, independent of their order, by which a later run detects a changed source."""
        splits = np.array([seeds.hash64(name) for name in self.split_names], dtype=np.uint64)
        of_split = splits[self.columns["splits"]] if len(splits) else self.columns["splits"]
        rows = seeds.hash64(hashes, self.columns["num_bytes"], of_split, self._label_hashes(), *self._target_bits())
        return digest(json.dumps(list(classes)).encode() + np.sort(rows).astype("<u8").tobytes())

    def _label_hashes(self) -> NDArray[np.uint64]:
        counts, starts = self.num_labels, self.columns["label_starts"]
        place = np.arange(len(self.columns["labels"])) - np.repeat(starts[:-1], counts)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(seeds.hash64(self.columns["labels"], place))])
        return sums[starts[1:]] - sums[starts[:-1]]  # modulo 2 ** 64

    def _target_bits(self) -> list[NDArray[np.uint64]]:
        if "negatives" in self.columns:
            return [self.columns["negatives"].astype(np.uint64)]
        if "masks" in self.columns:
            masks = (self._bytes_of("mask", row).hex() for row in range(len(self)))
            return [np.array(list(map(seeds.hash64, masks)), dtype=np.uint64)]
        if "vectors" not in self.columns:
            return []
        return list(self.columns["vectors"].reshape(len(self), -1).view(np.uint64).T)

    @classmethod
    def of(cls, items: Iterable[Item]) -> ItemTable:
        """Collects the items in one pass, in constant memory besides the columns; returns a table unchanged."""
        if isinstance(items, ItemTable):
            return items
        texts = {"key": _Texts(), "mask": _Texts(), "name": _Texts()}
        labels, label_starts, vectors = array("i"), array("q", [0]), array("d")
        numbers = {name: array("q") for name in ("num_bytes", "splits", "parts", "offsets")}
        split_names: dict[str, int] = {}
        for item in items:
            for name, column in texts.items():
                column.add(getattr(item, name))
            labels.extend(item.labels)
            label_starts.append(len(labels))
            vectors.extend(item.vector)
            values = (item.num_bytes, split_names.setdefault(item.split, len(split_names)), item.part, item.offset)
            for column, value in zip(numbers.values(), values, strict=True):
                column.append(value)
        if len(split_names) > MAX_SPLITS:
            raise DataError(f"the source has {len(split_names)} splits; at most {MAX_SPLITS} are possible")
        raw = {"labels": labels, "label_starts": label_starts} | numbers
        columns = {
            name: np.frombuffer(values, dtype=values.typecode).astype(_DTYPES[name], copy=False)
            for name, values in raw.items()
        }
        for name, column in texts.items():
            if column.values or name == "key":
                columns |= column.columns(name)
        if vectors:
            columns["vectors"] = np.frombuffer(vectors, dtype=np.float64)
        return cls(columns, list(split_names))

    def save(self, folder: Path) -> None:
        """Writes the columns as .npy files; the folder is written atomically."""
        temporary = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, values in self.columns.items():
            np.save(temporary / f"{name}.npy", values)
            sync(temporary / f"{name}.npy")
        write_atomic(temporary / SPLITS_FILE, json.dumps(self.split_names))
        temporary.rename(folder)
        sync(folder.parent)

    @classmethod
    def load(cls, folder: Path) -> ItemTable:
        """Memory-maps the files of ``save``, so that the processes of a machine share them."""
        present = [name for name in _OPTIONAL_COLUMNS if (folder / f"{name}.npy").exists()]
        columns = {name: _load_column(folder / f"{name}.npy") for name in [*_DTYPES, *present]}
        return cls(columns, json.loads((folder / SPLITS_FILE).read_bytes()))


class _Texts:
    """One text per row, as it is collected."""

    def __init__(self) -> None:
        self.values, self._starts = bytearray(), array("q", [0])

    def add(self, text: str) -> None:
        """Adds the text of the next row."""
        self.values += to_bytes(text)
        self._starts.append(len(self.values))

    def columns(self, name: str) -> dict[str, NDArray[Any]]:
        """The texts in CSR form."""
        starts = np.frombuffer(self._starts, dtype=np.int64)
        return {f"{name}s": np.frombuffer(self.values, dtype=np.uint8), f"{name}_starts": starts}


def _load_column(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:  # numpy cannot map an empty array
        return np.load(path)


class Rows(Sequence[Item]):
    """Some rows of a table as a lazy sequence of items."""

    def __init__(self, table: ItemTable, rows: NDArray[np.int64]) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Item | Rows:
        if isinstance(index, slice):
            return Rows(self.table, self.rows[index])
        return self.table[int(self.rows[index])]

    def __iter__(self) -> Iterator[Item]:
        return (self.table[int(row)] for row in self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)  # a worker gets the items of its shard, not the table


@dataclass(frozen=True)
class Relabelling:
    """New classes, and for each old class the new ones that it maps to, from general to specific.

    ``negative`` is the old class that means none of the new ones.
    """

    classes: tuple[tuple[str, str], ...]
    targets: tuple[tuple[int, ...], ...]
    negative: int | None = None

    @property
    def is_multi(self) -> bool:
        """Whether an old label may map to several."""
        return any(len(target) > 1 for target in self.targets)


def relabel(table: ItemTable, change: Relabelling) -> ItemTable:
    """Replaces each label by its targets; of repeated labels in a row the first is kept."""
    counts = np.array([len(target) for target in change.targets], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    targets = np.array([label for target in change.targets for label in target], dtype=np.int32)
    old = table.columns["labels"]
    per_label = counts[old]
    within = np.arange(per_label.sum()) - np.repeat(np.cumsum(per_label) - per_label, per_label)
    labels = targets[np.repeat(starts[old], per_label) + within] if len(targets) else targets
    of_old = np.repeat(np.arange(len(table)), table.num_labels)
    changed = table.with_labels(*without_repeats(labels, np.repeat(of_old, per_label), len(table)))
    if change.negative is not None:
        marked = np.zeros(len(table), dtype=np.uint8)
        marked[of_old[old == change.negative]] = 1
        changed.columns["negatives"] = marked
    return changed


def without_repeats(
    labels: NDArray[np.int32], rows: NDArray[np.int64], num_rows: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """CSR of (labels, rows), both (n,) with ascending rows; of repeated pairs the first is kept."""
    width = int(labels.max(initial=0)) + 1
    _, first = np.unique(rows * width + labels, return_index=True)
    first.sort()
    counts = np.bincount(rows[first], minlength=num_rows)
    return labels[first], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def num_with_repeats(table: ItemTable) -> int:
    """Rows that have one label more than once."""
    counts, labels = table.num_labels, table.columns["labels"]
    if int(counts.max(initial=0)) < 2:
        return 0
    rows = np.repeat(np.arange(len(table)), counts)
    order = np.lexsort((labels, rows))
    same = (labels[order][1:] == labels[order][:-1]) & (rows[order][1:] == rows[order][:-1])
    return len(np.unique(rows[order][1:][same]))
