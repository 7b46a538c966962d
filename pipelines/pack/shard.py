"""Writes one shard: a WebDataset tar and, last of all, its record file, which marks the shard as done."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.pack.contents import Reading
from pipelines.pack.images import TOO_SMALL, ImageOptions, make_image
from pipelines.pack.masks import MASK_EXTENSION, TURNED, MaskOptions, PackedMask, make_mask
from pipelines.pack.plan import Shard
from pipelines.sources.protocol import Item, Source
from pipelines.sources.remote import NotDownloaded
from pipelines.sources.vectors import TARGET_KEY
from pretrain.config.target import IGNORED_PIXEL, Target
from pretrain.data.storage.records import Record, Records, encode_records, records_name
from pretrain.errors import BadSample, DataError
from pretrain.files import TEMPORARY_SUFFIX, write_atomic
from pretrain.names import shown
from pretrain.redaction import redacted, redacted_in

KEY_DIGITS = 9
WANTED_KINDS = frozenset([TOO_SMALL])  # left out because of an option, not because they are bad


@dataclass(frozen=True)
class Writing:
    """The arguments that all shards of a pack share: the source, and how images and labels are written."""

    source: Source
    images: ImageOptions = field(default_factory=ImageOptions)
    multi_label: bool = False
    target: Target = "labels"
    masks: MaskOptions = field(default_factory=MaskOptions)


def num_bad(quarantined: list[dict[str, Any]]) -> int:
    """The quarantined images of a shard that count against the allowed rate."""
    return sum(entry["kind"] not in WANTED_KINDS for entry in quarantined)


def is_done(folder: Path, shard: Shard) -> bool:
    """True where an earlier run finished this shard: its record file is there and its tar has the size noted in it."""
    tar = folder / shard.name
    try:
        info = Records.open(folder / records_name(shard.name)).info
        return tar.stat().st_size == info["num_bytes"]
    except (DataError, OSError, KeyError):
        return False


def write_shard(writing: Writing, task: tuple[Path, Shard], progress: Callable[[int], None]) -> int:
    """Writes a shard and returns how many of its images are bad.

    The bytes are a function of the images, their order and the options alone: they contain no time, user or process.

    Args:
        writing: what the shards share.
        task: the split's folder, and what to write.
        progress: called with the number of newly finished images.
    """
    folder, shard = task
    temporary = folder / (shard.name + TEMPORARY_SUFFIX)
    records: list[Record] = []
    quarantined: list[dict[str, Any]] = []
    seen = _Seen(Counter(), Counter(), Counter(), Counter())
    reading = Reading(writing.source, masked=writing.target == "mask")
    with open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, item in enumerate(shard.items, start=shard.first):
                try:
                    records.append(_add_sample(tar, f"{number:0{KEY_DIGITS}d}", item, writing, seen, reading))
                except BadSample as bad:
                    quarantined.append(redacted_in({"source": shown(item.key), "kind": bad.kind, "detail": bad.detail}))
                progress(1)
                tar.members.clear()  # tarfile remembers every member it wrote  # pyright: ignore
        file.flush()
        os.fsync(file.fileno())
        num_bytes = file.tell()
    os.replace(temporary, folder / shard.name)
    info = {"num_bytes": num_bytes, "quarantined": quarantined}
    info |= {"short_sides": dict(seen.short_sides), "changes": dict(seen.changes)}
    if seen.numbers:
        info |= {"mask_classes": dict(seen.classes), "mask_numbers": dict(seen.numbers)}
    reading.save(folder, shard.name)
    write_atomic(folder / records_name(shard.name), encode_records(records, info))
    return num_bad(quarantined)


@dataclass(frozen=True)
class _Seen:
    """Counts for the card: images by the bucket of their shorter side and by what was changed; masks by their numbers.

    Attributes:
        short_sides: bucket → images.
        changes: what was changed → images.
        classes: class → masks that have it.
        numbers: stored number → masks that have it.
    """

    short_sides: Counter[str]
    changes: Counter[str]
    classes: Counter[str]
    numbers: Counter[str]

    def mask(self, mask: PackedMask) -> bytes:
        """Counts a mask and returns the bytes to pack."""
        self.classes.update(str(number) for number in np.unique(mask.classes[mask.classes != IGNORED_PIXEL]))
        self.numbers.update(str(number) for number in mask.numbers)
        self.changes.update([TURNED] if mask.was_turned else [])
        return mask.data


def _add_sample(tar: tarfile.TarFile, key: str, item: Item, writing: Writing, seen: _Seen, reading: Reading) -> Record:
    is_masked = writing.target == "mask"
    try:
        data, extension, mask = reading.read(item)
    except OSError as error:
        detail = error.strerror or str(error) or type(error).__name__
        raise BadSample(error.kind if isinstance(error, NotDownloaded) else "read", detail) from error
    image = make_image(data, extension, writing.images)
    if is_masked:
        mask = seen.mask(make_mask(mask, image, writing.masks))
    seen.short_sides[size_bucket(min(image.size))] += 1
    seen.changes.update(image.changes)
    member = f"{key}.{image.extension}"
    offset = _add_member(tar, member, image.data)
    place = None
    if is_masked:
        place = (_add_member(tar, f"{key}.{MASK_EXTENSION}", mask), len(mask), zlib.crc32(mask))
    elif writing.target == "vector":
        _add_member(tar, f"{key}.json", json.dumps({TARGET_KEY: item.vector}).encode())
    elif writing.multi_label:
        _add_member(tar, f"{key}.json", json.dumps({"labels": item.labels}).encode())
    else:
        _add_member(tar, f"{key}.cls", str(item.labels[0]).encode())
    source, crc = redacted(item.key), zlib.crc32(image.data)
    return Record(offset, len(image.data), crc, item.labels, member, source, item.vector, place)


def size_bucket(short_side: int) -> str:
    """The largest power of two up to a shorter side, as named in the card's histogram."""
    return str(1 << (short_side.bit_length() - 1))


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Appends a member with a fixed header and returns the offset of its first byte."""
    header = tarfile.TarInfo(name)  # time 0, user 0, mode 0644
    header.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(header, io.BytesIO(data))
    return offset
