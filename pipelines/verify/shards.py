"""Reads one shard, and writes its records or compares it with the existing ones, and with what webdataset reads."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.runs.processes import Progress
from pipelines.sources.label_classes import LabelCollector
from pipelines.sources.label_values import VectorLength
from pipelines.sources.samples import MEMBERS, OF_NO_SAMPLE, SAMPLES, others_note, samples_of, split_name
from pipelines.sources.tars import Member, RangeReader, members_of
from pipelines.verify.verdict import Job, Report
from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.data.images.masks import read_mask
from pretrain.data.images.opening import decode_strictly
from pretrain.data.ledger import Lost
from pretrain.data.storage.checksums import crc32
from pretrain.data.storage.index import ShardRow, max_labels_of
from pretrain.data.storage.records import Record, Records, encode_records, records_name
from pretrain.errors import BadSample, DataError
from pretrain.files import TEMPORARY_SUFFIX, digest, write_atomic
from pretrain.names import printable, shown

IMAGES = "images"


def check_shard(job: Job, task: tuple[str, ShardRow | None], progress: Progress) -> Report:
    """Reads one shard to its end. Without a row, its record file is written.

    Args:
        job: what the shards share.
        task: the tar's name, and its row in the table.
        progress: called when the shard is done.
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
        report.add(str(error).removeprefix(f"{name}: "))
    finally:
        if fetched:
            fetched.unlink(missing_ok=True)
        progress(1)
    return report


def _check(job: Job, report: Report, path: Path, row: ShardRow | None) -> None:
    if row is not None and path.stat().st_size != row.num_bytes:
        raise DataError(f"has {path.stat().st_size:,} bytes, but {row.num_bytes:,} in the index; copy it again")
    labels = LabelCollector(job.labels)
    labels.begin(job.classes)
    found = _with_classes(list(_scan(job, report, path, labels)), labels, report)
    report.labels = np.array([record.labels[-1] for record in found if record.labels], dtype=np.int32)
    report.all_labels = np.array(sorted({label for record in found for label in record.labels}), dtype=np.int32)
    if not any(record.vector or record.mask for record in found):
        num_labels = np.array([len(record.labels) for record in found], dtype=np.int64)
        report.max_labels, report.num_negatives = max_labels_of(num_labels), int((num_labels == 0).sum())
    report.highest = max((max(record.labels, default=-1) for record in found), default=-1)
    lengths = VectorLength()
    for record in found:
        lengths.check(record.vector, f"{report.name}: {record.source}")
    if lengths.length:
        report.moments.add(np.array([record.vector for record in found]))
    report.ledger.used(IMAGES, "in the index", len(found))
    if job.stock:
        compare_with_webdataset(report, path, found)
    if row is None:
        info = {"num_bytes": path.stat().st_size, "quarantined": []}
        data = encode_records(found, info)
        write_atomic(job.folder / records_name(report.name), data)
        report.row = ShardRow(report.name, len(found), path.stat().st_size, digest(data))
        return
    report.row = row
    known = Records.open(job.folder / records_name(report.name), digest_wanted=row.records, num_samples=row.num_samples)
    _compare_with_index(report, found, known)


def _with_classes(found: list[Record], labels: LabelCollector, report: Report) -> list[Record]:
    """The records with class numbers in place of provisional codes.

    Raises:
        DataError: the labels are names, and there is no list of their numbers.
    """
    if not any(record.labels for record in found):
        return found
    change = labels.resolve()
    report.notes += labels.notes
    if labels.are_names:
        raise DataError(
            f"the labels are names, such as {change.classes[0][0]!r}; an index has class numbers: give --class-names "
            "FILE with a class per line, or pack the shards again (python -m pipelines pack webdataset)"
        )
    return [
        replace(record, labels=tuple(dict.fromkeys(new for code in record.labels for new in change.targets[code])))
        for record in found
    ]


def _scan(job: Job, report: Report, path: Path, labels: LabelCollector) -> Iterator[Record]:
    """Records of a tar as it is now, with codes of ``labels``; bad images are recorded."""
    reader = RangeReader()

    def read(member: Member) -> bytes:
        return reader.read(path, member.offset, member.size)

    try:
        ledger = report.ledger
        ledger.found(IMAGES, 0)
        for sample in samples_of(members_of(path, ledger), read, report.name, ledger=ledger):
            ledger.found(IMAGES)
            data = read(sample.image)
            if job.decode:
                try:
                    decode_strictly(data)
                except BadSample as bad:
                    report.add(f"{sample.image.name}: cannot be decoded ({bad.detail})")
            mask, codes = None, ()
            if sample.mask is not None:
                mask = _mask(report, sample.mask, read(sample.mask), job)
            elif not sample.vector:
                label = sample.label
                codes = labels.add(label.value, f"{report.name}: {sample.key}", typed=label.typed)
            report.notes += [
                note for other in sample.others if (note := others_note(sample.label.place, other)) not in report.notes
            ]
            if not codes and not sample.vector and mask is None:
                report.add(f"{sample.key}: no label")
                ledger.lost(IMAGES, "no label", sample.key)
                continue
            image = sample.image
            yield Record(image.offset, image.size, crc32(data), codes, image.name, sample.key, sample.vector, mask)
    finally:
        reader.close()


def _mask(report: Report, member: Member, data: bytes, job: Job) -> tuple[int, int, int]:
    """The position of a mask; records the largest of its classes."""
    if job.decode:
        try:
            classes = read_mask(data)
            report.mask_classes = (report.mask_classes or set()) | set(np.unique(classes).tolist()) - {IGNORED_PIXEL}
        except BadSample as bad:
            report.add(f"{member.name}: {bad.detail}")
    report.num_masks += 1
    return member.offset, member.size, crc32(data)


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
            report.add(f"{record.member}: is not at the offset that the index has")
        elif now.crc32 != record.crc32:
            report.add(f"{record.member}: wrong checksum")
        elif now.mask != record.mask:
            report.add(f"{record.member}: its mask is not the one that was indexed")
        elif now.vector != record.vector:
            report.add(f"{record.member}: target {list(now.vector)} in the tar, {list(record.vector)} in the index")
        elif now.labels != record.labels:
            report.add(f"{record.member}: labels {list(now.labels)} in the tar, {list(record.labels)} in the index")
    for member in by_member.keys() - indexed:
        report.add(f"{member}: in the tar, not in the index")


def compare_with_webdataset(report: Report, path: Path, found: Sequence[Record]) -> None:
    """Stock webdataset must see the same images in the same order.

    It may see fewer: it leaves out links and everything after the first end of concatenated tars, which is a warning;
    the samples that the ledger records as left out are not expected.
    """
    places = {split_name(record.member)[0]: place for place, record in enumerate(found)}
    unseen, strangers, last = dict.fromkeys(places), [], -1
    try:
        for sample in _samples(path):
            key = sample["__key__"]
            place = places.get(key)
            if place is None:
                strangers.append(key)
                continue
            data = sample.get(split_name(found[place].member)[1])
            if data is None:  # its image is a link
                continue
            unseen.pop(key, None)
            if place <= last or not isinstance(data, bytes) or crc32(data) != found[place].crc32:
                report.add(f"{shown(found[place].member)}: webdataset reads another sample, {shown(key)}")
            last = place
    except Exception as error:  # any exception means that it cannot read this shard
        report.add(f"webdataset cannot read it: {type(error).__name__}: {printable(error)[:200]}")
        return
    _tell(report, unseen, strangers)


def _tell(report: Report, unseen: Iterable[str], strangers: Sequence[str]) -> None:
    accounts, missing = report.ledger.accounts, list(unseen)
    num_left_out = sum(accounts[kind].num_lost for kind in (SAMPLES, "images") if kind in accounts)
    num_left_out += accounts[MEMBERS].lost.get(OF_NO_SAMPLE, Lost()).count
    if len(strangers) > num_left_out:
        report.add(
            f"webdataset reads {len(strangers)} samples that are not among those found, such as {shown(strangers[0])}"
        )
    if missing:
        report.notes.append(
            f"{report.name}: samples that stock webdataset does not read: {len(missing)}, such as {shown(missing[0])}; "
            "it leaves out links in a tar, and everything after the first end of joined tars"
        )


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    from webdataset.compat import WebDataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the closing of a tar to the garbage collector
        try:
            yield from WebDataset(str(path), shardshuffle=False, empty_check=False)  # pyright: ignore[reportGeneralTypeIssues]
        finally:
            gc.collect()
