"""Stores read the bytes of the tars: from a local folder, or from a remote place through the node's cache.

A remote shard is cut into chunks of equal size. Each chunk is fetched by one range request, ahead of time or when it is
first needed, and cached for all processes of the node. Chunks are used instead of complete shards so that, where two
lanes share a shard, each node fetches only the chunks of its own part.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pretrain.data.storage.cache import NodeCache
from pretrain.data.storage.index import ShardRow
from pretrain.data.storage.open_files import Descriptor, OpenFiles
from pretrain.data.storage.records import records_name
from pretrain.data.storage.tally import Tally
from pretrain.data.storage.transport import GaveUp, Retries, Transport, TransportError, Unreachable, cannot_be_read
from pretrain.errors import BadSample, DataError
from pretrain.files import digest

MAX_OPEN_SHARDS = 64
LARGEST_CHUNK = 4 << 20
SMALLEST_CHUNK = 64 << 10
RECORDS_BYTES, RECORD_BYTES = 1 << 20, 1 << 16  # upper bounds for a record file and for one record
SHARED_PART = 16  # with chunk_bytes: auto, two lanes both read at most 1 / this of the set


class Store(Protocol):
    """Reads ranges of bytes from named shards. Must be picklable; open files and connections are left out.

    Attributes:
        keeps_up: whether it can fetch ahead (``RemoteStore.fetch_ahead``).
    """

    keeps_up: bool

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``offset`` on.

        Raises:
            BadSample: this range cannot be read.
            DataError: nothing can be read from the shard.
        """
        ...

    def forget(self, shard: str, offset: int, size: int) -> bool:
        """Drops cached bytes of a range that were wrong. Returns whether another read may give different bytes."""
        ...


class LocalStore:
    """Reads tars in a local folder with ``pread``; keeps few of them open.

    Args:
        folder: where the tars are.
        max_open: maximum number of open files; the least recently used one is closed first.
        tally: counts the bytes read.
    """

    keeps_up = False

    def __init__(self, folder: str | Path, max_open: int = MAX_OPEN_SHARDS, tally: Tally | None = None) -> None:
        self.folder = Path(folder)
        self.tally = tally
        self._open: OpenFiles[Descriptor] = OpenFiles(max_open)

    @property
    def num_open(self) -> int:
        """Number of open files."""
        return len(self._open)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """See ``Store.read``."""
        try:
            data = os.pread(self._descriptor(shard).number, size, offset)
        except OSError as error:
            raise BadSample("read", f"{error.strerror} at byte {offset}") from error
        if len(data) != size:
            raise BadSample("short_read", f"{len(data)} of {size} bytes at byte {offset}")
        if self.tally is not None:
            self.tally.add(bytes_read=size)
        return data

    def forget(self, shard: str, offset: int, size: int) -> bool:
        """See ``Store.forget``: a file gives the same bytes again."""
        return False

    def close(self) -> None:
        """Closes every file."""
        self._open.close()

    def _descriptor(self, shard: str) -> Descriptor:
        try:
            return self._open.get(shard, lambda: Descriptor(self.folder / shard))
        except OSError as error:
            raise DataError(f"shard {self.folder / shard} cannot be opened: {error.strerror}") from error


def automatic_chunk_bytes(set_bytes: int, lanes: int) -> int:
    """The chunk size at which the L cuts between lanes cost one chunk each, at most a sixteenth of the set in total."""
    return min(LARGEST_CHUNK, max(SMALLEST_CHUNK, set_bytes // (SHARED_PART * lanes)))


class RemoteStore:
    """Reads remote tars through the node's cache; see ``Store``.

    Args:
        transport: makes the requests.
        cache: stores the fetched chunks.
        rows: the table's shards; their digests are part of the cache keys, so a repacked set is fetched again.
        chunk_bytes: size of one request.
        retries: policy for failed requests.
        tally: counts the bytes read and fetched, and the retries.
    """

    keeps_up = True

    def __init__(
        self,
        transport: Transport,
        cache: NodeCache,
        rows: Sequence[ShardRow],
        *,
        chunk_bytes: int,
        retries: Retries,
        tally: Tally | None = None,
    ) -> None:
        self.transport, self.cache, self.chunk_bytes, self.retries = transport, cache, chunk_bytes, retries
        self.tally = tally
        self._rows: Mapping[str, ShardRow] = {row.name: row for row in rows}

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """See ``Store.read``."""
        stop = offset + size
        if stop > self._rows[shard].num_bytes:
            raise BadSample("short_read", f"bytes {offset} to {stop - 1} of {self._rows[shard].num_bytes}")
        parts = []
        for chunk in self.chunks(offset, stop):
            first = chunk * self.chunk_bytes
            start, end = max(offset, first) - first, min(stop, first + self.chunk_bytes) - first
            parts.append(self._part(shard, chunk, start, end - start))
        self._count(bytes_read=size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, start: int, stop: int) -> range:
        """The chunks that contain the bytes from ``start`` to ``stop`` (exclusive)."""
        return range(start // self.chunk_bytes, (stop - 1) // self.chunk_bytes + 1)

    def forget(self, shard: str, offset: int, size: int) -> bool:
        """See ``Store.forget``."""
        for chunk in self.chunks(offset, offset + size):
            self.cache.drop(self._key(shard, chunk))
        return True

    def records(self, shard: str) -> Path:
        """Local path of the shard's record file.

        Raises:
            DataError: it cannot be fetched.
        """
        row = self._rows[shard]
        key = f"records {row.records}"
        self.cache.get(key, lambda: self._record_file(row), size=0)
        return self.cache.path(key)

    def forget_records(self, shard: str) -> None:
        """Drops this node's copy of the shard's record file, because it is damaged."""
        self.cache.drop(f"records {self._rows[shard].records}")

    def has(self, shard: str, chunk: int) -> bool:
        """Whether the node's cache has a chunk."""
        return self._key(shard, chunk) in self.cache

    def fetch_ahead(self, shard: str, chunk: int) -> None:
        """Fetches a chunk that will be read, unless it is cached or being fetched.

        Raises:
            DataError: as ``read``.
        """
        if self.transport.ranged:
            self.cache.fill(self._key(shard, chunk), lambda: self._fetch(shard, chunk))
        elif not self.has(shard, chunk):
            self._stream(shard, wait=False)

    def _part(self, shard: str, chunk: int, start: int, size: int) -> bytes:
        key = self._key(shard, chunk)
        found = self.cache.peek(key, start=start, size=size)
        if found is not None:
            self._count(cache_hits=1)
            return found
        self._count(cache_misses=1)
        if not self.transport.ranged:
            for _ in range(self.retries.attempts):  # the fetched chunk may have been evicted before it was read
                self._stream(shard, wait=True, wanted=key)
                found = self.cache.peek(key, start=start, size=size)
                if found is not None:
                    return found
            raise Unreachable(
                f"{shard}: it does not stay in the cache while it is read: cluster.cache.max_bytes "
                f"({self.cache.max_bytes:,}) is too small"
            )
        return self.cache.get(key, lambda: self._fetch(shard, chunk), start=start, size=size)

    def _fetch(self, shard: str, chunk: int) -> bytes:
        start = chunk * self.chunk_bytes
        size = min(self.chunk_bytes, self._rows[shard].num_bytes - start)
        return self._asked(shard, start, size)

    def _asked(self, name: str, start: int = 0, size: int | None = None, most_bytes: int | None = None) -> bytes:
        retried = lambda: self._count(fetch_retries=1)  # noqa: E731
        data = self.retries.fetch(self.transport, name, start, size, most_bytes=most_bytes, retried=retried)
        self._count(bytes_fetched=len(data))
        return data

    def _count(self, **counts: int) -> None:
        if self.tally is not None:
            self.tally.add(**counts)

    def _record_file(self, row: ShardRow) -> bytes:
        """Fetches a file with a wrong digest again, since a cache or the connection may be at fault."""
        name = records_name(row.name)
        for _ in range(2):
            data = self._asked(name, most_bytes=RECORDS_BYTES + row.num_samples * RECORD_BYTES)
            if digest(data) == row.records:
                return data
        raise DataError(
            f"{self.transport.location.url(name)}: not the file that index.json was made with (stale or damaged). "
            "Copy the set there again"
        )

    def _stream(self, shard: str, *, wait: bool, wanted: str | None = None) -> None:
        """Fetches an entire shard, for transports that cannot fetch parts, and caches it chunk by chunk."""
        with self.cache.lock("shard", f"{self._rows[shard].records} {shard}", wait=wait) as held:
            if not held or (wanted is not None and wanted in self.cache):
                return
            try:
                self.retries.again(lambda: self._keep_pieces(shard), retried=lambda: self._count(fetch_retries=1))
            except GaveUp as error:
                raise Unreachable(cannot_be_read(self.transport, shard, "", error)) from error

    def _keep_pieces(self, shard: str) -> None:
        size, pending, kept = self._rows[shard].num_bytes, bytearray(), 0
        for piece in self.transport.pieces(shard, most_bytes=size):
            self._count(bytes_fetched=len(piece))
            pending += piece
            while len(pending) >= self.chunk_bytes:
                self.cache.put(self._key(shard, kept // self.chunk_bytes), bytes(pending[: self.chunk_bytes]))
                del pending[: self.chunk_bytes]
                kept += self.chunk_bytes
        if kept + len(pending) != size:
            raise TransportError(f"short read: {kept + len(pending)} of {size} bytes")
        if pending:
            self.cache.put(self._key(shard, kept // self.chunk_bytes), bytes(pending))

    def _key(self, shard: str, chunk: int) -> str:
        row = self._rows[shard]
        return f"chunk {row.records} {shard} {row.num_bytes} {self.chunk_bytes} {chunk}"
