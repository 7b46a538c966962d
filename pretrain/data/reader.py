"""Sample id → bytes and labels, checked against the index."""

from __future__ import annotations

import bisect
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pretrain.data.faults import BadSample, Fault
from pretrain.data.index import Record, Records, ShardTable
from pretrain.data.selection import Selection
from pretrain.data.store import LocalStore, Store
from pretrain.data.transport import Unreachable
from pretrain.errors import DataError

MAX_OPEN_RECORDS = 256
MAX_NEIGHBOURS = 16
MAX_FETCHES = 3  # of bytes that do not have their checksum
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Sample:
    """The encoded bytes of one image and what belongs to it: labels, or a vector of numbers."""

    sample_id: int
    data: bytes
    labels: tuple[int, ...]
    vector: tuple[float, ...] = ()


class ShardReader:
    """Reads samples of one split; belongs to one process.

    Args:
        table: the split's shards.
        store: where the bytes come from; None: the table's own folder.
        selection: the samples that may replace a bad one; None: all.
    """

    def __init__(self, table: ShardTable, store: Store | None = None, selection: Selection | None = None) -> None:
        self.table = table
        self.selection = selection or Selection(table.sizes)
        self.store = store or LocalStore(table.folder)
        self._records: OrderedDict[int, Records] = OrderedDict()
        self._verified: set[int] = set()

    def read(self, sample_id: int) -> Sample:
        """One sample, its length and checksum verified.

        Raises:
            BadSample: the bytes are not there or not those that were packed.
            DataError: the shard or its record file is missing or stale.
        """
        shard, record = self.record(sample_id)
        for attempt in range(1, MAX_FETCHES + 1):  # noqa: B007, it is told below
            try:
                data = self.store.read(shard, record.offset, record.size)
            except Unreachable as error:
                raise DataError(f"member {record.member} of shard {error}") from error
            crc = zlib.crc32(data)
            if crc == record.crc32:
                return Sample(sample_id, data, record.labels, record.vector)
            if not self.store.forget(shard, record.offset, record.size):  # also the last time: it must not be kept
                break
        fetched = f" in each of {attempt} fetches" if attempt > 1 else ""
        raise BadSample("crc", f"CRC-32 {crc:08x}{fetched}, packed as {record.crc32:08x}")

    def record(self, sample_id: int) -> tuple[str, Record]:
        """The name of a sample's shard, and what the index says about the sample."""
        shards, records = self.table.locate(sample_id)
        return self.table.rows[int(shards)].name, self._open(int(shards))[int(records)]

    def spans(self, shard: int, records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First byte, and end, of some images of a shard; all int64 (b,)."""
        columns = self._open(shard).columns
        starts = columns["offsets"][records].astype(np.int64)
        return starts, starts + columns["sizes"][records]

    def read_decoded(self, sample_id: int, decode: Callable[[bytes], Decoded]) -> tuple[Sample, Decoded]:
        """One sample and what ``decode`` makes of its bytes.

        Raises:
            BadSample: as ``read``, or raised by ``decode``.
        """
        sample = self.read(sample_id)
        return sample, decode(sample.data)

    def read_or_neighbour(
        self, sample_id: int, decode: Callable[[bytes], Decoded]
    ) -> tuple[Sample, Decoded, list[Fault]]:
        """One sample, or the next good one of its shard where it is bad: the same one on every rank and in every run.

        Raises:
            BadSample: none of the next ones is good either.
        """
        try:
            return *self.read_decoded(sample_id, decode), []
        except BadSample as bad:
            for neighbour in self.selection.neighbours(sample_id, MAX_NEIGHBOURS):
                try:
                    sample, decoded = self.read_decoded(neighbour, decode)
                except BadSample:
                    continue
                return sample, decoded, [self.fault(sample_id, bad, replaced_by=neighbour)]
            raise

    def fault(self, sample_id: int, bad: BadSample, *, replaced_by: int = -1) -> Fault:
        """The record of a sample that could not be used."""
        shard, record = self.record(sample_id)
        return Fault(sample_id, replaced_by, shard, f"{record.member} ({record.source})", bad.kind, bad.detail)

    def _open(self, shard: int) -> Records:
        if shard in self._records:
            self._records.move_to_end(shard)
            return self._records[shard]
        row = self.table.rows[shard]
        records = Records.open(
            self.table.records_path(shard),
            digest_wanted=None if shard in self._verified else row.records,
            num_samples=row.num_samples,
        )
        self._verified.add(shard)
        self._records[shard] = records
        while len(self._records) > MAX_OPEN_RECORDS:
            self._records.popitem(last=False)
        return records

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": OrderedDict(), "_verified": set()}


class MixedReader:
    """Readers of several sets as one, whose sample ids count on from set to set.

    Args:
        readers: of the sets.
        first_sample_ids: of each.
        places: where each lies, for messages.
    """

    def __init__(self, readers: Sequence[ShardReader], first_sample_ids: Sequence[int], places: Sequence[str]) -> None:
        self.readers, self.first_sample_ids, self.places = tuple(readers), tuple(first_sample_ids), tuple(places)

    @property
    def table(self) -> ShardTable:
        """The first set's; all have targets of one kind and as many classes."""
        return self.readers[0].table

    @property
    def max_labels(self) -> int:
        """The most labels that one sample has."""
        return max(reader.table.max_labels for reader in self.readers)

    def read_or_neighbour(
        self, sample_id: int, decode: Callable[[bytes], Decoded]
    ) -> tuple[Sample, Decoded, list[Fault]]:
        """As ``ShardReader.read_or_neighbour``.

        Raises:
            DataError: neither the sample nor the next ones can be used.
        """
        index, first = self._of(sample_id)
        try:
            sample, decoded, faults = self.readers[index].read_or_neighbour(sample_id - first, decode)
        except BadSample as bad:
            fault = self.readers[index].fault(sample_id - first, bad)
            raise DataError(
                f"shard {self.places[index]}/{fault.shard}: member {fault.member} cannot be used ({bad}), nor can the "
                f"next {MAX_NEIGHBOURS} of the shard; copy or pack it again"
            ) from bad
        moved = [
            replace(fault, sample_id=fault.sample_id + first, replaced_by=fault.replaced_by + first) for fault in faults
        ]
        return replace(sample, sample_id=sample.sample_id + first), decoded, moved

    def _of(self, sample_id: int) -> tuple[int, int]:
        index = bisect.bisect_right(self.first_sample_ids, sample_id) - 1
        return index, self.first_sample_ids[index]
