"""One shard: made an index of, or compared with the one that it has."""

from __future__ import annotations

import gc
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.packing.moments import Moments
from pipelines.packing.pool import Progress
from pipelines.sources.remote import RemoteFiles
from pipelines.sources.samples import samples_of
from pipelines.sources.tars import Member, RangeReader, members_of
from pipelines.sources.vectors import VectorLength
from pretrain.config.target import IGNORED_PIXEL
from pretrain.data.decode import decode_strictly
from pretrain.data.faults import BadSample
from pretrain.data.index import Record, Records, ShardRow, encode_records, records_name
from pretrain.data.location import Location
from pretrain.data.masks import read_mask
from pretrain.errors import DataError
from pretrain.files import TEMPORARY_SUFFIX, digest, write_atomic

MOST_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """What all shards of a set share.

    Attributes:
        folder: where the index is, and the tars unless they are remote.
        location: of the tars where they are remote; None: they are in the folder.
        remote: fetches them.
        class_ids: id → index, for labels that are names.
        decode: every image is decoded.
        stock: every shard is read by webdataset too.
    """

    folder: Path
    location: Location | None = None
    remote: RemoteFiles = field(default_factory=RemoteFiles)
    class_ids: dict[str, int] = field(default_factory=dict)
    decode: bool = True
    stock: bool = True


@dataclass
class Report:
    """What was found in one shard.

    Attributes:
        name: of the tar.
        row: of the table, as the shard would be indexed now; None: it cannot be read.
        labels: int32 (n,), the most special label of each sample.
        max_labels: the most labels of one sample.
        highest: the largest label; -1 where there are none.
        moments: of the vectors, where samples have those.
        num_masks: samples with a mask.
        highest_in_masks: the largest class in them, as far as they were decoded.
        problems: the first few, in words.
        num_problems: how many there are.
    """

    name: str
    row: ShardRow | None = None
    labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    max_labels: int = 1
    highest: int = -1
    moments: Moments = field(default_factory=Moments)
    num_masks: int = 0
    highest_in_masks: int = -1
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self.num_problems += 1
        if len(self.problems) < MOST_SHOWN:
            self.problems.append(problem)


def check_shard(job: Job, task: tuple[str, ShardRow | None], progress: Progress) -> Report:
    """Reads one shard to its end. Without a row, its record file is written.

    Args:
        job: what the shards share.
        task: the tar's name, and its row in the table.
        progress: told of the shard when it is done.
    """
    name, row = task
    report = Report(name)
    path = job.folder / name
    fetched = path.with_name(f"{name}.fetched{TEMPORARY_SUFFIX}") if job.location else None
    try:
        if fetched and job.location:
            job.remote.fetch(job.location, name, fetched)
            path = fetched
            if row is not None and not (records := job.folder / records_name(name)).exists():
                job.remote.fetch(job.location, records.name, records)
        _check(job, report, path, row)
    except (DataError, OSError) as error:
        report.add(str(error))
    finally:
        if fetched:
            fetched.unlink(missing_ok=True)
        progress(1)
    return report


def _check(job: Job, report: Report, path: Path, row: ShardRow | None) -> None:
    if row is not None and path.stat().st_size != row.num_bytes:
        raise DataError(f"has {path.stat().st_size:,} bytes, the index says {row.num_bytes:,}; copy it again")
    found = list(_scan(job, report, path))
    report.labels = np.array([record.labels[-1] for record in found if record.labels], dtype=np.int32)
    report.max_labels = max((len(record.labels) for record in found), default=1)
    report.highest = max((max(record.labels, default=-1) for record in found), default=-1)
    lengths = VectorLength()
    for record in found:
        lengths.check(record.vector, f"{report.name}: {record.source}")
    if lengths.length:
        report.moments.add(np.array([record.vector for record in found]))
    if job.stock:
        _compare_with_webdataset(report, path, found)
    if row is None:
        info = {"num_bytes": path.stat().st_size, "quarantined": []}
        data = encode_records(found, info)
        write_atomic(job.folder / records_name(report.name), data)
        report.row = ShardRow(report.name, len(found), path.stat().st_size, digest(data))
        return
    report.row = row
    known = Records.open(job.folder / records_name(report.name), digest_wanted=row.records, num_samples=row.num_samples)
    _compare_with_index(report, found, known)


def _scan(job: Job, report: Report, path: Path) -> Iterator[Record]:
    """Records of a tar as it is now; bad images are noted."""
    reader = RangeReader()

    def read(member: Member) -> bytes:
        return reader.read(path, member.offset, member.size)

    try:
        for sample in samples_of(members_of(path), read, report.name):
            data = read(sample.image)
            if job.decode:
                try:
                    decode_strictly(data)
                except BadSample as bad:
                    report.add(f"{sample.image.name}: cannot be decoded ({bad.detail})")
            labels = tuple(_label(job, label, sample.key) for label in sample.labels)
            mask = None
            if sample.mask is not None:
                mask = _mask(report, sample.mask, read(sample.mask), job)
            if not labels and not sample.vector and mask is None:
                report.add(f"{sample.key}: no label")
                continue
            image = sample.image
            yield Record(
                image.offset, image.size, zlib.crc32(data), labels, image.name, sample.key, sample.vector, mask
            )
    finally:
        reader.close()


def _mask(report: Report, member: Member, data: bytes, job: Job) -> tuple[int, int, int]:
    """Where a mask is; the largest of its classes is noted."""
    if job.decode:
        try:
            classes = read_mask(data)
            report.highest_in_masks = max(
                report.highest_in_masks, int(classes[classes != IGNORED_PIXEL].max(initial=0))
            )
        except BadSample as bad:
            report.add(f"{member.name}: {bad.detail}")
    report.num_masks += 1
    return member.offset, member.size, zlib.crc32(data)


def _label(job: Job, label: int | str, key: str) -> int:
    if isinstance(label, int):
        return label
    if label not in job.class_ids:
        raise DataError(
            f"the label {label!r} of {key!r} is no number and no known class; give --class-names FILE with a class id "
            "per line"
        )
    return job.class_ids[label]


def _compare_with_index(report: Report, found: list[Record], known: Records) -> None:
    by_member = {record.member: record for record in found}
    indexed = set()
    for index in range(len(known)):
        record = known[index]
        indexed.add(record.member)
        now = by_member.get(record.member)
        if now is None:
            report.add(f"{record.member}: in the index, not in the tar")
        elif (now.offset, now.size) != (record.offset, record.size):
            report.add(f"{record.member}: lies elsewhere than the index says")
        elif now.crc32 != record.crc32:
            report.add(f"{record.member}: wrong checksum")
        elif now.mask != record.mask:
            report.add(f"{record.member}: its mask is not the one that was indexed")
        elif now.vector != record.vector:
            report.add(f"{record.member}: the tar says target {list(now.vector)}, the index {list(record.vector)}")
        elif now.labels != record.labels:
            report.add(f"{record.member}: the tar says labels {list(now.labels)}, the index {list(record.labels)}")
    for member in by_member.keys() - indexed:
        report.add(f"{member}: in the tar, not in the index")


def _compare_with_webdataset(report: Report, path: Path, found: list[Record]) -> None:
    """Stock webdataset must see the same images in the same order."""
    from webdataset.compat import WebDataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of a tar to the garbage collector
        count = 0
        try:
            for sample in WebDataset(str(path), shardshuffle=False):  # pyright: ignore[reportGeneralTypeIssues]
                if count >= len(found):
                    count += 1
                    continue
                extension = found[count].member.rpartition("/")[2].partition(".")[2].lower()
                data = sample.get(extension)
                if not isinstance(data, bytes) or zlib.crc32(data) != found[count].crc32:
                    report.add(f"{found[count].member}: webdataset reads another sample, {sample.get('__key__')}")
                count += 1
        except Exception as error:  # whatever it raises, it does not read this shard
            report.add(f"webdataset cannot read it: {type(error).__name__}: {str(error)[:200]}")
            return
        finally:
            gc.collect()
    if count != len(found):
        report.add(f"webdataset reads {count} samples, there are {len(found)}")
