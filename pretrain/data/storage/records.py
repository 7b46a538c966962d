"""The record file of one shard: where each sample is in the tar, and its labels.

DIR/shard-000000.records.safetensors    offsets, sizes, CRC-32 and labels of the tar's images

Columns of equal length have one entry per record. Ragged ones are in CSR form: record i has the labels
``labels[label_starts[i]:label_starts[i + 1]]``; names are stored in the same way, as bytes that need not be UTF-8. A
set of vectors has a column ``vectors`` of N · D numbers, a set of masks has columns that locate the masks, and a set
whose keys differ from the names of its files has a column of those; columns that a set does not need are absent.

The file is memory-mapped, since a training run looks at few records of many shards.

Legend: N records · b requested samples · C classes · M labels of one sample at most · D numbers of a vector.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pretrain.data.storage.index_checks import check_columns
from pretrain.data.storage.open_files import check_descriptors
from pretrain.errors import DataError
from pretrain.files import digest
from pretrain.names import from_bytes, to_bytes

RECORDS_SUFFIX = ".records.safetensors"


PADDING_LABEL = -1  # pads the rows of samples that have fewer labels than others


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
    "names": np.uint8,
    "name_starts": np.int64,
}


_DTYPES = {np.int64: "I64", np.int32: "I32", np.uint32: "U32", np.uint8: "U8", np.float64: "F64"}


def records_name(shard: str) -> str:
    """Name of the record file that belongs to a tar."""
    return shard.removesuffix(".tar") + RECORDS_SUFFIX


@dataclass(frozen=True)
class Record:
    """One image of a shard: the place of its bytes, and its target.

    Attributes:
        offset: of the first byte of the image in the tar.
        size: bytes of the image.
        crc32: of those bytes.
        labels: class indices, ascending from general to special where they are nested.
        member: name inside the tar, such as 000000042.jpg.
        source: the packer's key, such as the path of the file that was packed.
        name: of the original file, where the packer's key is another one; "": it is not.
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
    name: str = ""

    @property
    def original(self) -> str:
        """The name that the image had where it was packed from; "" if the index has only the member of the tar."""
        name = self.name or self.source
        return "" if self.member.startswith(f"{name}.") else name

    def shown_in(self, shard: str) -> str:
        """How the image is called where people read it: by its original name, else by its place in the tar."""
        return self.original or f"{shard}/{self.member}"


class Records:
    """The record file of one shard, as read-only arrays over a memory map.

    Attributes:
        columns: name → array; see the module's legend.
        info: notes of the packer (the tar's size, files that it left out).
    """

    def __init__(self, columns: dict[str, NDArray[Any]], info: dict[str, Any]) -> None:
        self.columns = columns
        self.info = info
        self._path: Path | None = None
        self._stamp: tuple[int, ...] = ()

    def is_current(self) -> bool:
        """Whether the file is unchanged since its digest was checked; it is mapped, so a change would be visible."""
        if self._path is None:
            return True
        try:
            return _stamp(os.stat(self._path)) == self._stamp
        except FileNotFoundError:  # the mapping stays valid, and the removed file cannot be changed by name
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
            name=from_bytes(self._row("names", "name_starts", index).tobytes()) if "names" in columns else "",
        )

    def _mask(self, index: int) -> tuple[int, int, int]:
        offset, size, crc32 = (int(self.columns[name][index]) for name in ("mask_offsets", "mask_sizes", "mask_crc32"))
        return offset, size, crc32

    def spans(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First byte and end of everything that is read for these samples; all int64 (b,)."""
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
            digest_wanted: its digest in the table; None: not checked.
            num_samples: its samples in the table; None: not checked.

        Raises:
            DataError: it is missing, damaged, or does not belong to the table.
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
            raise DataError(f"{path}: not the file that index.json was made with (stale or damaged). {REMEDY}")
        try:
            records = cls(*_parse(data))
            check_columns(records.columns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: not a record file ({error}). {REMEDY}") from error
        records._path, records._stamp = path, stamp
        if num_samples is not None and len(records) != num_samples:
            raise DataError(f"{path}: {len(records)} records, but index.json has {num_samples}. {REMEDY}")
        return records


def _parse(data: memoryview) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reads the safetensors layout in place, without a copy: 8 bytes of length, JSON header, then the tensors."""
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
    """The remedy for a file that cannot be read."""
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
    for name in ("member", "source", *(["name"] if any(record.name for record in records) else [])):
        texts = [to_bytes(getattr(record, name)) for record in records]
        arrays[name + "s"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
        arrays[name + "_starts"] = np.array(_starts([len(text) for text in texts]), dtype=np.int64)
    if records and records[0].vector:
        arrays["vectors"] = np.array([number for record in records for number in record.vector], dtype=np.float64)
    if records and records[0].mask is not None:
        masks = np.array([record.mask for record in records], dtype=np.int64)
        for column, name in enumerate(("mask_offsets", "mask_sizes", "mask_crc32")):
            arrays[name] = masks[:, column].astype(_OPTIONAL_COLUMNS[name])
    # only one metadata key, since safetensors writes several in no fixed order
    return safetensors.numpy.save(arrays, metadata={"info": json.dumps(info, sort_keys=True)})


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()]
