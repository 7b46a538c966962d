"""Sample id → bytes and labels, checked against the index."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pretrain.data.faults import BadSample, Fault
from pretrain.data.index import Record, Records, ShardTable
from pretrain.data.store import LocalStore, Store

MAX_OPEN_RECORDS = 256
MAX_NEIGHBOURS = 16
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Sample:
    """The encoded bytes of one image and its labels."""

    sample_id: int
    data: bytes
    labels: tuple[int, ...]


class ShardReader:
    """Reads samples of one split; belongs to one process.

    Args:
        table: the split's shards.
        store: where the bytes come from; None: the table's own folder.
    """

    def __init__(self, table: ShardTable, store: Store | None = None) -> None:
        self.table = table
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
        data = self.store.read(shard, record.offset, record.size)
        crc = zlib.crc32(data)
        if crc != record.crc32:
            raise BadSample("crc", f"CRC-32 {crc:08x}, packed as {record.crc32:08x}")
        return Sample(sample_id, data, record.labels)

    def record(self, sample_id: int) -> tuple[str, Record]:
        """The name of a sample's shard, and what the index says about the sample."""
        shards, records = self.table.locate(sample_id)
        return self.table.rows[int(shards)].name, self._open(int(shards))[int(records)]

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
            for neighbour in self._neighbours(sample_id):
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

    def _neighbours(self, sample_id: int) -> list[int]:
        shard = int(self.table.locate(sample_id)[0])
        start, size = int(self.table.starts[shard]), int(self.table.sizes[shard])
        count = min(size - 1, MAX_NEIGHBOURS)
        return [start + (sample_id - start + step) % size for step in range(1, count + 1)]

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
        return {"table": self.table, "store": self.store, "_records": OrderedDict(), "_verified": set()}
