"""Writes one shard: a WebDataset tar and, last of all, its record file, which says that the shard is done."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.packing.plan import Shard
from pipelines.sources.protocol import Item, Source
from pretrain.data.decode import decode_strictly
from pretrain.data.faults import BadSample
from pretrain.data.index import Record, Records, encode_records, records_name
from pretrain.errors import DataError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic

KEY_DIGITS = 9


def is_done(folder: Path, shard: Shard) -> bool:
    """True where an earlier run finished this shard: its record file is there and its tar has the size noted in it."""
    tar = folder / shard.name
    try:
        info = Records.open(folder / records_name(shard.name)).info
        return tar.stat().st_size == info["num_bytes"]
    except (DataError, OSError, KeyError):
        return False


def write_shard(folder: Path, shard: Shard, source: Source, progress: Callable[[int], None]) -> int:
    """Writes a shard and returns how many of its images were quarantined.

    The bytes are a function of the images and their order alone: no time, user or process stands in them.

    Args:
        folder: the split's folder.
        shard: what to write.
        source: where the bytes come from.
        progress: called with the number of images that are newly done.
    """
    temporary = folder / (shard.name + TEMPORARY_SUFFIX)
    records: list[Record] = []
    quarantined: list[dict[str, Any]] = []
    with open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, item in enumerate(shard.items, start=shard.first):
                try:
                    records.append(_add_sample(tar, f"{number:0{KEY_DIGITS}d}", item, source))
                except BadSample as bad:
                    quarantined.append({"source": item.key, "kind": bad.kind, "detail": bad.detail})
                progress(1)
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
    os.replace(temporary, folder / shard.name)
    info = {"num_bytes": num_bytes, "quarantined": quarantined}
    write_atomic(folder / records_name(shard.name), encode_records(records, info))
    return len(quarantined)


def _add_sample(tar: tarfile.TarFile, key: str, item: Item, source: Source) -> Record:
    try:
        data, extension = source.read(item.key)
    except OSError as error:
        raise BadSample("read", error.strerror or type(error).__name__) from error
    decode_strictly(data)
    member = f"{key}.{extension}"
    offset = _add_member(tar, member, data)
    if source.multi_label:
        _add_member(tar, f"{key}.json", json.dumps({"labels": item.labels}).encode())
    else:
        _add_member(tar, f"{key}.cls", str(item.labels[0]).encode())
    return Record(offset, len(data), zlib.crc32(data), item.labels, member, item.key)


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Appends a member with a fixed header and returns the offset of its first byte."""
    header = tarfile.TarInfo(name)  # time 0, user 0, mode 0644
    header.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(data))
    return offset
