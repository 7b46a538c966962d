"""The list of a source's images as columns: about 70 bytes per image, on disk if several processes share it.

Labels are in CSR form: row i has ``labels[label_starts[i]:label_starts[i + 1]]``. Keys likewise, as UTF-8 bytes. A list
of vectors has a column ``vectors`` of N · D numbers too, a list with masks the places of those, like the keys.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
_OPTIONAL_DTYPES = {"vectors": np.float64, "masks": np.uint8, "mask_starts": np.int64}


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
            mask=from_bytes(self._mask_bytes(row)),
        )

    def _mask_bytes(self, row: int) -> bytes:
        if "masks" not in self.columns:
            return b""
        starts = self.columns["mask_starts"]
        return self.columns["masks"][starts[row] : starts[row + 1]].tobytes()

    def _vector(self, row: int) -> tuple[float, ...]:
        if "vectors" not in self.columns:
            return ()
        return tuple(self.columns["vectors"].reshape(len(self), -1)[row].tolist())

    def key(self, row: int) -> str:
        """The key of a row."""
        return from_bytes(self._key_bytes(row))

    def _key_bytes(self, row: int) -> bytes:
        starts = self.columns["key_starts"]
        return self.columns["keys"][starts[row] : starts[row + 1]].tobytes()

    @property
    def num_labels(self) -> NDArray[np.int64]:
        """Labels per row."""
        return np.diff(self.columns["label_starts"])

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
            if self._key_bytes(first) == self._key_bytes(second):
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
        if "masks" in self.columns:
            return [np.array([seeds.hash64(self._mask_bytes(row).hex()) for row in range(len(self))], dtype=np.uint64)]
        if "vectors" not in self.columns:
            return []
        return list(self.columns["vectors"].reshape(len(self), -1).view(np.uint64).T)

    @classmethod
    def of(cls, items: Iterable[Item]) -> ItemTable:
        """Collects the items in one pass, in constant memory besides the columns; returns a table unchanged."""
        if isinstance(items, ItemTable):
            return items
        keys, key_starts, labels, label_starts = bytearray(), array("q", [0]), array("i"), array("q", [0])
        numbers = {name: array("q") for name in ("num_bytes", "splits", "parts", "offsets")}
        split_names: dict[str, int] = {}
        vectors, masks, mask_starts = array("d"), bytearray(), array("q", [0])
        for item in items:
            keys += to_bytes(item.key)
            key_starts.append(len(keys))
            labels.extend(item.labels)
            label_starts.append(len(labels))
            vectors.extend(item.vector)
            masks += to_bytes(item.mask)
            mask_starts.append(len(masks))
            values = (item.num_bytes, split_names.setdefault(item.split, len(split_names)), item.part, item.offset)
            for column, value in zip(numbers.values(), values, strict=True):
                column.append(value)
        if len(split_names) > MAX_SPLITS:
            raise DataError(f"the source has {len(split_names)} splits; at most {MAX_SPLITS} are possible")
        raw = {"keys": keys, "key_starts": key_starts, "labels": labels, "label_starts": label_starts} | numbers
        columns = {
            name: np.frombuffer(values, dtype=np.uint8 if name == "keys" else values.typecode).astype(  # pyright: ignore
                _DTYPES[name], copy=False
            )
            for name, values in raw.items()
        }
        if vectors:
            columns["vectors"] = np.frombuffer(vectors, dtype=np.float64)
        if masks:
            columns["masks"] = np.frombuffer(masks, dtype=np.uint8)
            columns["mask_starts"] = np.frombuffer(mask_starts, dtype=np.int64)
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
        present = [name for name in _OPTIONAL_DTYPES if (folder / f"{name}.npy").exists()]
        columns = {name: _load_column(folder / f"{name}.npy") for name in [*_DTYPES, *present]}
        return cls(columns, json.loads((folder / SPLITS_FILE).read_bytes()))


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
