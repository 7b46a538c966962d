"""Writes the shards of a plan: each is a WebDataset tar and, last of all, its record file, which marks it as done.

The tasks of an array divide the shards: number k of the pack belongs to task k modulo the number of tasks.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.pack.contents import Reading
from pipelines.pack.finish import QUARANTINE_FILE, encode_lines, quarantined_in, remove_leftovers
from pipelines.pack.images import TOO_SMALL, ImageOptions, make_image
from pipelines.pack.masks import MASK_EXTENSION, TURNED, MaskOptions, PackedMask, make_mask
from pipelines.pack.plan import Plan, Shard
from pipelines.pack.state import Task
from pipelines.runs.processes import run_tasks
from pipelines.sources.label_values import TARGET_KEY
from pipelines.sources.protocol import Item, Source
from pipelines.sources.remote import NotDownloaded
from pipelines.terminal.output import LazyBar
from pretrain.config.schema.data import IGNORED_PIXEL, Target
from pretrain.data.storage.checksums import crc32
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
    seen = _Seen(Counter(), Counter(), Counter(), Counter(), Counter())
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
    if seen.markers:
        info |= {"restart_markers": dict(seen.markers)}
    if seen.numbers:
        info |= {"mask_classes": dict(seen.classes), "mask_numbers": dict(seen.numbers)}
    reading.save(folder, shard.name)
    write_atomic(folder / records_name(shard.name), encode_records(records, info))
    return num_bad(quarantined)


@dataclass(frozen=True)
class _Seen:
    """Counts for the card: images by the bucket of their shorter side and by what was changed, JPEGs by their restart
    markers, masks by their numbers.

    Attributes:
        short_sides: bucket → images.
        changes: what was changed → images.
        classes: class → masks that have it.
        numbers: stored number → masks that have it.
        markers: whether they have restart markers, in words → JPEGs.
    """

    short_sides: Counter[str]
    changes: Counter[str]
    classes: Counter[str]
    numbers: Counter[str]
    markers: Counter[str]

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
    seen.markers.update([image.markers] if image.markers else [])
    member = f"{key}.{image.extension}"
    offset = _add_member(tar, member, image.data)
    place = None
    if is_masked:
        place = (_add_member(tar, f"{key}.{MASK_EXTENSION}", mask), len(mask), crc32(mask))
    elif writing.target == "vector":
        _add_member(tar, f"{key}.json", json.dumps({TARGET_KEY: item.vector}).encode())
    elif writing.multi_label:
        _add_member(tar, f"{key}.json", json.dumps({"labels": item.labels}).encode())
    else:
        _add_member(tar, f"{key}.cls", str(item.labels[0]).encode())
    source, crc = redacted(item.key), crc32(image.data)
    return Record(offset, len(image.data), crc, item.labels, member, source, item.vector, place, redacted(item.name))


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


@dataclass(frozen=True)
class Shares:
    """The shards of a plan in the folder of the pack.

    Attributes:
        plan: what is packed.
        out: the folder.
        max_bad_rate: share of the images that may be bad.
        task: the one whose share is meant; None: all tasks.
    """

    plan: Plan
    out: Path
    max_bad_rate: float
    task: Task | None = None

    @property
    def shards(self) -> list[tuple[Path, Shard]]:
        """(folder of the split, shard) of the task."""
        every = [(self.out / split.name, shard) for split in self.plan.splits for shard in split.shards]
        return every[self.task.number - 1 :: self.task.count] if self.task else every

    @property
    def done(self) -> list[tuple[Path, Shard]]:
        """The shards that an earlier run finished."""
        return [(folder, shard) for folder, shard in self.shards if is_done(folder, shard)]

    def write(self, writing: Writing, num_workers: int) -> None:
        """Writes the missing shards, and counts the bad images of all shards.

        Raises:
            DataError: more images are bad than allowed.
        """
        self._clean()
        shards, done = self.shards, {(folder, shard.name) for folder, shard in self.done}
        finished = [(folder, shard) for folder, shard in shards if (folder, shard.name) in done]
        tasks = [(folder, shard) for folder, shard in shards if (folder, shard.name) not in done]
        num_items, num_done = _num_images(shards), _num_images(finished)
        bad, limit = _num_bad(finished), self.max_bad_rate * num_items
        with LazyBar("packing", num_items, "images") as bar:
            if bad <= limit:
                workers = min(num_workers, len(tasks))
                for more in run_tasks(write_shard, tasks, writing, workers, lambda count: bar.show(num_done + count)):
                    bad += more
                    if bad > limit:
                        break
        if bad > limit:
            raise DataError(self._too_many_bad())

    def check_complete(self, num_tasks: int) -> None:
        """Rejects a merge before all tasks are done.

        Raises:
            DataError: names the tasks to run again.
        """
        shards = self.shards
        missing = [number for number, (folder, shard) in enumerate(shards) if not is_done(folder, shard)]
        if missing:
            tasks = sorted({number % num_tasks + 1 for number in missing})
            shown = ", ".join(f"{number}/{num_tasks}" for number in tasks[:16]) + (" …" if len(tasks) > 16 else "")
            raise DataError(
                f"{self.out}: {len(missing)} of {len(shards)} shards are missing; run again with --task {shown}, then "
                "merge"
            )

    def check_rate(self) -> None:
        """Rejects finished shards with too many bad images.

        Raises:
            DataError: more are bad than allowed.
        """
        if _num_bad(self.shards) > self.max_bad_rate * self.plan.num_items:
            raise DataError(self._too_many_bad())

    def _clean(self) -> None:
        """Makes the folders and removes partly written files; a task touches those of its own shards only."""
        for split in self.plan.splits:
            (self.out / split.name).mkdir(exist_ok=True)
            if self.task is None:
                remove_leftovers(self.out / split.name)
        for folder, shard in self.shards if self.task else ():
            for leftover in folder.glob(f"{shard.name.removesuffix('.tar')}.*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)

    def _too_many_bad(self) -> str:
        """The error message; lists all bad images so far in a file."""
        entries = [
            {"split": folder.name, **entry}
            for folder, shard in self.done
            for entry in quarantined_in(folder, [shard])
            if num_bad([entry])
        ]
        write_atomic(self.out / QUARANTINE_FILE, encode_lines(entries))
        counts = Counter(entry["kind"] for entry in entries).most_common()
        kinds = ", ".join(f"{kind} × {count}" for kind, count in counts)
        first = entries[0]
        return (
            f"at least {len(entries)} of {_num_images(self.shards)} images cannot be used ({kinds}), more than "
            f"--max-bad-rate {self.max_bad_rate:g} allows. First: {first['source']} ({first['kind']}: "
            f"{first['detail']}). All so far: {self.out / QUARANTINE_FILE}. Fix or remove them, or run again with a "
            "higher --max-bad-rate"
        )


def _num_images(shards: Sequence[tuple[Path, Shard]]) -> int:
    return sum(len(shard.items) for _, shard in shards)


def _num_bad(shards: Sequence[tuple[Path, Shard]]) -> int:
    return sum(num_bad(quarantined_in(folder, [shard])) for folder, shard in shards)
