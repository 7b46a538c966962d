"""Sample id → bytes and labels, checked against the index."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.data.order.mixture import Selection
from pretrain.data.storage.checksums import crc32
from pretrain.data.storage.index import ShardTable
from pretrain.data.storage.open_files import OpenFiles
from pretrain.data.storage.records import PADDING_LABEL, Record, Records
from pretrain.data.storage.store import LocalStore, Store
from pretrain.data.storage.tally import Fault
from pretrain.data.storage.transport import Unreachable
from pretrain.errors import BadSample, DataError

MAX_OPEN_RECORDS = 256
MAX_NEIGHBOURS = 16
MAX_FETCHES = 3  # attempts to fetch bytes whose checksum is wrong
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Sample:
    """The encoded bytes of one image and its target: labels, a vector of numbers, or an encoded mask.

    ``num_classes`` is the number of classes of its set, to which the numbers in a mask are limited.
    """

    sample_id: int
    data: bytes
    labels: tuple[int, ...]
    vector: tuple[float, ...] = ()
    mask: bytes | None = None
    num_classes: int = IGNORED_PIXEL


class Place(NamedTuple):
    """The location of one image's bytes, and their CRC-32."""

    shard: str
    offset: int
    size: int
    crc32: int


class ShardReader:
    """Reads samples of one split; used by one process.

    Args:
        table: the split's shards.
        store: reads the tars; None: from the table's folder.
        selection: the samples that may replace a bad one; None: all.
    """

    def __init__(self, table: ShardTable, store: Store | None = None, selection: Selection | None = None) -> None:
        self.table = table
        self.selection = selection or Selection(table.sizes)
        self.store = store or LocalStore(table.folder)
        self._records: OpenFiles[Records] = OpenFiles(MAX_OPEN_RECORDS)

    def read(self, sample_id: int) -> Sample:
        """One sample, with its length and checksum verified.

        Raises:
            BadSample: the bytes are missing, or differ from those that were packed.
            DataError: the shard or its record file is missing or stale.
        """
        shard, record = self.record(sample_id)
        data = self.read_at(sample_id, Place(shard, record.offset, record.size, record.crc32))
        mask = None if record.mask is None else self.read_at(sample_id, Place(shard, *record.mask))
        return Sample(sample_id, data, record.labels, record.vector, mask, self.table.num_classes)

    def read_at(self, sample_id: int, place: Place) -> bytes:
        """The bytes of a sample with a known place; raises as ``read``."""
        shard, offset, size, packed_crc = place
        for attempt in range(1, MAX_FETCHES + 1):  # noqa: B007, used below
            try:
                data = self.store.read(shard, offset, size)
            except Unreachable as error:
                raise DataError(f"member {self.record(sample_id)[1].member} of shard {error}") from error
            crc = crc32(data)
            if crc == packed_crc:
                return data
            if not self.store.forget(shard, offset, size):  # also the last time: wrong bytes must not stay cached
                break
        fetched = f" in each of {attempt} fetches" if attempt > 1 else ""
        raise BadSample("crc", f"CRC-32 {crc:08x}{fetched}, packed as {packed_crc:08x}")

    def places(self, sample_ids: NDArray[np.int64], max_labels: int) -> tuple[list[Place], NDArray[np.int64]]:
        """The places and labels of several samples, at little more than the cost of one.

        Args:
            sample_ids: (b,)
            max_labels: M, at least the labels of any sample.

        Returns:
            The places, and the labels, int64 (b, M), padded.

        Raises:
            DataError: a record file is missing or stale.
        """
        shards, indices = self.table.locate(sample_ids)
        places: list[Any] = [None] * len(sample_ids)
        labels = np.full((len(sample_ids), max_labels), PADDING_LABEL, dtype=np.int64)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            records, name = self._open(shard), self.table.rows[shard].name
            for row, place in zip(rows.tolist(), records.places(indices[rows]), strict=True):
                places[row] = Place(name, *place)
            labels[rows] = records.labels(indices[rows], max_labels)
        return places, labels

    def record(self, sample_id: int) -> tuple[str, Record]:
        """The name of a sample's shard, and the sample's record in the index."""
        shards, records = self.table.locate(sample_id)
        return self.table.rows[int(shards)].name, self._open(int(shards))[int(records)]

    def spans(self, shard: int, records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First byte and end of some images of a shard; all int64 (b,)."""
        return self._open(shard).spans(records)

    def read_decoded(self, sample_id: int, decode: Callable[[Sample], Decoded]) -> tuple[Sample, Decoded]:
        """One sample and the result of ``decode``.

        Raises:
            BadSample: as ``read``, or raised by ``decode``.
        """
        sample = self.read(sample_id)
        return sample, decode(sample)

    def read_or_neighbour(
        self, sample_id: int, decode: Callable[[Sample], Decoded]
    ) -> tuple[Sample, Decoded, list[Fault]]:
        """One sample or, if it is bad, the next good one of its shard; the same one on every rank and in every run.

        Raises:
            BadSample: none of the next samples is good either.
        """
        try:
            return *self.read_decoded(sample_id, decode), []
        except BadSample as bad:
            sample, decoded, fault = self.neighbour(sample_id, bad, decode)
            return sample, decoded, [fault]

    def neighbour(
        self, sample_id: int, bad: BadSample, decode: Callable[[Sample], Decoded]
    ) -> tuple[Sample, Decoded, Fault]:
        """The next good sample of the shard, which replaces a bad one; ``bad`` is the reason.

        Raises:
            BadSample: ``bad``; none of the next samples is good either.
        """
        for neighbour in self.selection.neighbours(sample_id, MAX_NEIGHBOURS):
            try:
                sample, decoded = self.read_decoded(neighbour, decode)
            except BadSample:
                continue
            return sample, decoded, self.fault(sample_id, bad, replaced_by=neighbour)
        raise bad

    def fault(self, sample_id: int, bad: BadSample, *, replaced_by: int = -1) -> Fault:
        """The record of an unusable sample."""
        shard, record = self.record(sample_id)
        member = f"{record.member} ({record.name or record.source})"
        return Fault(sample_id, replaced_by, shard, member, bad.kind, bad.detail)

    def _open(self, shard: int) -> Records:
        records = self._records.get(shard, lambda: self.table.open_records(shard))
        if not records.is_current():  # overwritten while it was mapped: check again that it matches the table
            self._records.drop(shard)
            records = self._records.get(shard, lambda: self.table.open_records(shard))
        return records


class MixedReader:
    """Combines the readers of several sets; sample ids are numbered consecutively across the sets.

    Args:
        readers: of the sets.
        first_sample_ids: of each set.
        folders: the location of each set, for messages.
    """

    def __init__(self, readers: Sequence[ShardReader], first_sample_ids: Sequence[int], folders: Sequence[str]) -> None:
        self.readers, self.first_sample_ids, self.folders = tuple(readers), tuple(first_sample_ids), tuple(folders)

    @property
    def table(self) -> ShardTable:
        """The first set's table; all sets have the same kind of target and number of classes."""
        return self.readers[0].table

    @property
    def max_labels(self) -> int:
        """The largest number of labels of a sample."""
        return max(reader.table.max_labels for reader in self.readers)

    def places(self, sample_ids: NDArray[np.int64]) -> tuple[list[Place], NDArray[np.int64]]:
        """Like ``ShardReader.places``, with ``max_labels`` over all sets."""
        if len(self.readers) == 1:
            return self.readers[0].places(sample_ids - self.first_sample_ids[0], self.max_labels)
        places: list[Any] = [None] * len(sample_ids)
        labels = np.full((len(sample_ids), self.max_labels), PADDING_LABEL, dtype=np.int64)
        sets = np.searchsorted(self.first_sample_ids, sample_ids, side="right") - 1
        for index in np.unique(sets).tolist():
            rows = np.flatnonzero(sets == index)
            inner = sample_ids[rows] - self.first_sample_ids[index]
            found, labels[rows] = self.readers[index].places(inner, self.max_labels)
            for row, place in zip(rows.tolist(), found, strict=True):
                places[row] = place
        return places, labels

    def read_at(self, sample_id: int, place: Place) -> bytes:
        """Like ``ShardReader.read_at``."""
        index, first = self._of(sample_id)
        return self.readers[index].read_at(sample_id - first, place)

    def read(self, sample_id: int) -> Sample:
        """Like ``ShardReader.read``."""
        index, first = self._of(sample_id)
        return replace(self.readers[index].read(sample_id - first), sample_id=sample_id)

    def neighbour(
        self, sample_id: int, bad: BadSample, decode: Callable[[Sample], Decoded]
    ) -> tuple[Sample, Decoded, Fault]:
        """Like ``ShardReader.neighbour``.

        Raises:
            DataError: the next samples cannot be used either.
        """
        index, first = self._of(sample_id)
        reader = self.readers[index]
        try:
            sample, decoded, fault = reader.neighbour(sample_id - first, bad, decode)
        except BadSample:
            fault = reader.fault(sample_id - first, bad)
            raise DataError(
                f"shard {self.folders[index]}/{fault.shard}: member {fault.member} cannot be used ({bad}), nor "
                f"can the next {MAX_NEIGHBOURS} of the shard; copy or pack it again"
            ) from bad
        moved = replace(fault, sample_id=fault.sample_id + first, replaced_by=fault.replaced_by + first)
        return replace(sample, sample_id=sample.sample_id + first), decoded, moved

    def named(self, sample_id: int) -> str:
        """A sample in words: its shard, its member in the tar, and the name of its file."""
        index, first = self._of(sample_id)
        shard, record = self.readers[index].record(sample_id - first)
        return f"{self.folders[index]}/{shard}: {record.member} ({record.name or record.source})"

    def _of(self, sample_id: int) -> tuple[int, int]:
        index = bisect.bisect_right(self.first_sample_ids, sample_id) - 1
        return index, self.first_sample_ids[index]
