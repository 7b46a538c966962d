"""The two-level index beside the tars: a table of shards that alone decides the order, and one record file per shard.

DIR/index.json                          one row per shard: name, samples, bytes, digest of its record file
DIR/shard-000000.tar                    an ordinary WebDataset shard
DIR/shard-000000.records.safetensors    offsets, sizes, CRC-32 and labels of its images, read when the shard is

Labels are in CSR form: record i has ``labels[label_starts[i]:label_starts[i + 1]]``. Names likewise, as their
bytes, which need not be UTF-8. A set of vectors has a column ``vectors`` of N · D numbers, a set of masks columns that
say where those lie; columns that a set does not need are absent.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from pretrain.config.target import Target
from pretrain.data.storage.index_checks import check_columns, check_table, check_within, problem_in_rows
from pretrain.data.storage.open_files import check_descriptors
from pretrain.errors import DataError
from pretrain.files import digest, write_atomic
from pretrain.names import from_bytes, to_bytes

FORMAT = "webdataset-index"
VERSION = 1
TABLE_FILE = "index.json"
RECORDS_SUFFIX = ".records.safetensors"
PADDING_LABEL = -1  # fills rows of samples that have fewer labels than others
REMEDY = "Pack the set again, or copy it again from where it was packed."

_COLUMNS = {
    "offsets": np.int64,
    "sizes": np.int64,
    "crc32": np.uint32,
    "labels": np.int32,
    "label_starts": np.int64,
    "members": np.uint8,
    "member_starts": np.int64,
    "sources": np.uint8,
    "source_starts": np.int64,
}
_OPTIONAL_COLUMNS = {
    "vectors": np.float64,
    "mask_offsets": np.int64,
    "mask_sizes": np.int64,
    "mask_crc32": np.uint32,
}


_DTYPES = {np.int64: "I64", np.int32: "I32", np.uint32: "U32", np.uint8: "U8", np.float64: "F64"}


def records_name(shard: str) -> str:
    """Name of the record file that belongs to a tar."""
    return shard.removesuffix(".tar") + RECORDS_SUFFIX


@dataclass(frozen=True)
class ShardRow:
    """One shard in the table. ``records`` is the digest of its record file, ``num_bytes`` the size of its tar."""

    name: str
    num_samples: int
    num_bytes: int
    records: str


class ShardTable:
    """The shards of one split in canonical order.

    Attributes:
        folder: where tars and record files lie.
        rows: the shards.
        num_classes: width of the label space; of vectors their length.
        max_labels: the most labels that one sample has.
        target: what a sample carries beside its image.
        sizes: int64 (S,), samples per shard.
        starts: int64 (S + 1,), sample id of each shard's first record; the last one is the number of samples.
        digest: names the table's content.
        find_records: shard name → its record file, where that is not in the folder (a set that lies elsewhere).
        forget_records: drops that file, so that it is fetched again.
    """

    def __init__(
        self, folder: Path, rows: Sequence[ShardRow], *, num_classes: int, max_labels: int, target: Target = "labels"
    ) -> None:
        self.folder = Path(folder)
        self.rows = tuple(rows)
        self.num_classes = num_classes
        self.max_labels = max_labels
        self.target: Target = target
        self.sizes = np.array([row.num_samples for row in self.rows], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.digest = digest(_canonical(self._content()))
        self.find_records: Callable[[str], Path] | None = None
        self.forget_records: Callable[[str], None] | None = None

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.starts[-1])

    def locate(self, sample_ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and record of each sample id, both int64 of its shape."""
        sample_ids = np.asarray(sample_ids, dtype=np.int64)
        assert np.all((sample_ids >= 0) & (sample_ids < self.num_samples)), "a sample id lies outside the set"
        shards = self.starts.searchsorted(sample_ids, side="right") - 1
        return shards, sample_ids - self.starts[shards]

    def records_path(self, shard: int) -> Path:
        """The record file of a shard, as a file on this node."""
        if self.find_records is not None:
            return self.find_records(self.rows[shard].name)
        return self.folder / records_name(self.rows[shard].name)

    def open_records(self, shard: int) -> Records:
        """The record file of a shard, compared with the table.

        Raises:
            DataError: missing, damaged, or not the file that the table was made with. SetupError: too many open files.
        """
        try:
            return self._opened(shard)
        except DataError:
            if self.forget_records is None:
                raise
        self.forget_records(self.rows[shard].name)  # this node's copy was damaged or evicted: it is fetched again
        return self._opened(shard)

    def _opened(self, shard: int) -> Records:
        row, path = self.rows[shard], self.records_path(shard)
        records = Records.open(path, digest_wanted=row.records, num_samples=row.num_samples)
        bounds = (row.num_bytes, self.num_classes, self.max_labels)
        try:
            check_within(records.columns, self.target, *bounds)
        except ValueError as error:
            raise DataError(f"{path}: does not fit {TABLE_FILE}: {error}. {REMEDY}") from error
        return records

    def check_files(self) -> None:
        """Compares the folder with the table: every tar and record file there, every tar of its size.

        Raises:
            DataError: names the first shard that is missing or has another size, and how many there are in all.
        """
        wrong = [problem for row in self.rows for problem in self._problems(row)]
        if wrong:
            more = f" (and {len(wrong) - 1} more problems like this)" if len(wrong) > 1 else ""
            raise DataError(f"{self.folder}: {wrong[0]}{more}. {REMEDY}")

    def _problems(self, row: ShardRow) -> list[str]:
        tar, records = self.folder / row.name, self.folder / records_name(row.name)
        if not tar.is_file():
            return [f"shard {row.name} is missing"]
        size = tar.stat().st_size
        if size != row.num_bytes:
            what = "truncated" if size < row.num_bytes else "not the file that was indexed"
            return [f"shard {row.name} is {what}: it has {size} bytes, {TABLE_FILE} says {row.num_bytes}"]
        return [] if records.is_file() else [f"record file {records.name} is missing"]

    def save(self) -> None:
        """Writes index.json atomically.

        Raises:
            DataError: a shard has a name that readers refuse.
        """
        self._check_rows()
        write_atomic(self.folder / TABLE_FILE, _dump(self._content() | {"digest": self.digest}))

    @classmethod
    def load(cls, folder: str | Path) -> ShardTable:
        """Reads index.json.

        Raises:
            DataError: the folder or the file is missing, of another version, or was changed after it was written.
        """
        path = Path(folder) / TABLE_FILE
        content = _read_table(path)
        try:
            check_table(content)
            rows = [ShardRow(*row) for row in content["shards"]]
            settings = {name: content[name] for name in ("num_classes", "max_labels")}
            table = cls(Path(folder), rows, **settings, target=content.get("target", "labels"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: not a complete index ({error}). {REMEDY}") from error
        if table.digest != content.get("digest"):
            raise DataError(
                f"{path} was changed or damaged: its rows give the digest {table.digest}, not the one written in it. "
                f"{REMEDY}"
            )
        table._check_rows()
        return table

    def _check_rows(self) -> None:
        problem = problem_in_rows([(row.name, row.num_samples, row.num_bytes) for row in self.rows])
        if problem:
            raise DataError(f"{self.folder / TABLE_FILE}: {problem}. Rename or pack the shards, and index them again")

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": int(self.sizes.sum()),
            "num_classes": self.num_classes,
            "max_labels": self.max_labels,
            **({} if self.target == "labels" else {"target": self.target}),
            "columns": ["name", "num_samples", "num_bytes", "records"],
            "shards": [[row.name, row.num_samples, row.num_bytes, row.records] for row in self.rows],
        }


def _read_table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        num_tars = len(list(path.parent.glob("*.tar")))
        if num_tars:
            raise DataError(
                f"{path} does not exist: the {num_tars} shards in {path.parent} have no index yet. "
                f"Make it with: python -m pipelines verify {path.parent}"
            )
        raise DataError(
            f"{path} does not exist: {path.parent} is not (or not completely) packed. "
            f"Make it with: python -m pipelines pack SOURCE --out {path.parent.parent}"
        )
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        check_descriptors(error, str(path))
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}). {REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not an index of shards (its format should be {FORMAT!r}). {REMEDY}")
    if content.get("version") != VERSION:
        raise DataError(f"{path}: index version {content.get('version')!r}, this program reads version {VERSION}.")
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _dump(content: dict[str, Any]) -> bytes:
    """JSON with one shard per line, so that a table can be read, compared and searched by line."""
    shards = ",\n".join(json.dumps(row) for row in content["shards"])
    head = json.dumps({key: value for key, value in content.items() if key != "shards"}, indent=1)
    return f'{head[:-2]},\n "shards": [\n{shards}\n]\n}}\n'.encode()


@dataclass(frozen=True)
class Record:
    """One image of a shard: where its bytes are and what it shows.

    Attributes:
        offset: of the first byte of the image in the tar.
        size: bytes of the image.
        crc32: of those bytes.
        labels: class indices, ascending from general to special where they are nested.
        member: name inside the tar, such as 000000042.jpg.
        source: the packer's key, such as the path of the file that was packed.
        vector: the numbers that belong to the image, in a set of vectors.
        mask: where its mask is, in a set of masks: offset, size and CRC-32.
    """

    offset: int
    size: int
    crc32: int
    labels: tuple[int, ...]
    member: str
    source: str
    vector: tuple[float, ...] = ()
    mask: tuple[int, int, int] | None = None


class Records:
    """The record file of one shard, as read-only arrays over a memory map.

    Attributes:
        columns: name → array; see the module's legend.
        info: what the packer noted (the tar's size, files that it left out).
    """

    def __init__(self, columns: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        self.columns = columns
        self.info = info
        self._path: Path | None = None
        self._stamp: tuple[int, ...] = ()

    def is_current(self) -> bool:
        """Whether the file is as it was when it was compared with its digest: it is mapped, so a change shows."""
        if self._path is None:
            return True
        try:
            return _stamp(os.stat(self._path)) == self._stamp
        except FileNotFoundError:  # what is mapped stays, and nobody can write to it by its name
            return True
        except OSError:
            return False

    def __len__(self) -> int:
        return len(self.columns["offsets"])

    def __getitem__(self, index: int) -> Record:
        columns = self.columns
        return Record(
            offset=int(columns["offsets"][index]),
            size=int(columns["sizes"][index]),
            crc32=int(columns["crc32"][index]),
            labels=tuple(int(label) for label in self._row("labels", "label_starts", index)),
            member=from_bytes(self._row("members", "member_starts", index).tobytes()),
            source=from_bytes(self._row("sources", "source_starts", index).tobytes()),
            vector=tuple(self.vectors[index].tolist()) if "vectors" in columns else (),
            mask=self._mask(index) if "mask_offsets" in columns else None,
        )

    def _mask(self, index: int) -> tuple[int, int, int]:
        offset, size, crc32 = (int(self.columns[name][index]) for name in ("mask_offsets", "mask_sizes", "mask_crc32"))
        return offset, size, crc32

    def spans(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First byte, and end, of all that is read of some samples; all int64 (b,)."""
        columns = self.columns
        starts = columns["offsets"][indices].astype(np.int64)
        ends = starts + columns["sizes"][indices]
        if "mask_offsets" not in columns:
            return starts, ends
        masks = columns["mask_offsets"][indices]
        return np.minimum(starts, masks), np.maximum(ends, masks + columns["mask_sizes"][indices])

    @property
    def vectors(self) -> NDArray[np.float64]:
        """float64 (N, D), of a set of vectors."""
        return self.columns["vectors"].reshape(len(self), -1)

    def places(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """Offset, size and CRC-32 of some images, in their order; indices (b,)."""
        return zip(*(self.columns[name][indices].tolist() for name in ("offsets", "sizes", "crc32")), strict=True)

    def labels(self, indices: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """The labels of some images, int64 (b, width), padded; indices (b,)."""
        starts, labels = self.columns["label_starts"], self.columns["labels"]
        first = starts[indices][:, None] + np.arange(width)
        inside = first < starts[indices + 1][:, None]
        found = np.full(first.shape, PADDING_LABEL, dtype=np.int64)
        found[inside] = labels[first[inside]]
        return found

    def _row(self, values: str, starts: str, index: int) -> NDArray[Any]:
        return self.columns[values][self.columns[starts][index] : self.columns[starts][index + 1]]

    @classmethod
    def open(cls, path: Path, *, digest_wanted: str | None = None, num_samples: int | None = None) -> Records:
        """Maps a record file.

        Args:
            path: the file.
            digest_wanted: what the table says; None: not checked.
            num_samples: what the table says; None: not checked.

        Raises:
            DataError: missing, damaged, or not the file that the table was made with.
        """
        try:
            with open(path, "rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            check_descriptors(error, str(path))
            raise DataError(f"{path}: cannot be read ({error.strerror or error}). {_remedy(error)}") from error
        except ValueError as error:
            raise DataError(f"{path}: cannot be read ({error}). {REMEDY}") from error
        if digest_wanted is not None and digest(data) != digest_wanted:
            raise DataError(f"{path}: not the file that {TABLE_FILE} was made with (stale or damaged). {REMEDY}")
        try:
            records = cls(*_parse(data))
            check_columns(records.columns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: not a record file ({error}). {REMEDY}") from error
        records._path, records._stamp = path, stamp
        if num_samples is not None and len(records) != num_samples:
            raise DataError(f"{path}: {len(records)} records, {TABLE_FILE} says {num_samples}. {REMEDY}")
        return records


def _parse(data: memoryview) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reads the safetensors layout in place: 8 bytes length, JSON header, then the tensors. No copy is made."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + length]))
    body = data[8 + length :]
    columns = {}
    present = {name: dtype for name, dtype in _OPTIONAL_COLUMNS.items() if name in header}
    for name, dtype in (_COLUMNS | present).items():
        begin, end = header[name]["data_offsets"]
        if end > len(body):
            raise ValueError(f"column {name} ends behind the end of the file")
        if not 0 <= begin <= end or header[name]["dtype"] != _DTYPES[dtype]:
            raise ValueError(f"column {name} is not of the kind {_DTYPES[dtype]}")
        columns[name] = np.frombuffer(body[begin:end], dtype=np.dtype(dtype).newbyteorder("<"))
    info = json.loads(header["__metadata__"]["info"])
    if not isinstance(info, dict):
        raise ValueError("its info is not an object")
    return columns, info


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _remedy(error: OSError) -> str:
    """What to do about a file that is there, or not, and cannot be read."""
    if error.errno in (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ETIMEDOUT):
        return "The disk or the file server fails: look at its log, then start again"
    return "Give this user the right to read it" if error.errno in (errno.EACCES, errno.EPERM) else REMEDY


def encode_records(records: Sequence[Record], info: dict[str, Any]) -> bytes:
    """The bytes of a record file; equal records give equal bytes."""
    labels = [label for record in records for label in record.labels]
    columns = {
        "offsets": [record.offset for record in records],
        "sizes": [record.size for record in records],
        "crc32": [record.crc32 for record in records],
        "labels": labels,
        "label_starts": _starts([len(record.labels) for record in records]),
    }
    arrays = {name: np.array(values, dtype=_COLUMNS[name]) for name, values in columns.items()}
    for name in ("member", "source"):
        texts = [to_bytes(getattr(record, name)) for record in records]
        arrays[name + "s"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
        arrays[name + "_starts"] = np.array(_starts([len(text) for text in texts]), dtype=np.int64)
    if records and records[0].vector:
        arrays["vectors"] = np.array([number for record in records for number in record.vector], dtype=np.float64)
    if records and records[0].mask is not None:
        masks = np.array([record.mask for record in records], dtype=np.int64)
        for column, name in enumerate(("mask_offsets", "mask_sizes", "mask_crc32")):
            arrays[name] = masks[:, column].astype(_OPTIONAL_COLUMNS[name])
    # one metadata key only: safetensors writes several in no fixed order
    return safetensors.numpy.save(arrays, metadata={"info": json.dumps(info, sort_keys=True)})


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()]
