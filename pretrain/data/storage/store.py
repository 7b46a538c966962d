"""Where the bytes of the tars come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from pretrain.data.storage.open_files import Descriptor, OpenFiles
from pretrain.data.workers.faults import BadSample
from pretrain.data.workers.tally import Tally
from pretrain.errors import DataError

MAX_OPEN_SHARDS = 64


class Store(Protocol):
    """Ranges of bytes from named shards. Must pickle; whatever it has open stays behind.

    Attributes:
        keeps_up: whether it gains from being told what will be read (``RemoteStore.fetch_ahead``).
    """

    keeps_up: bool

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``offset`` on.

        Raises:
            BadSample: this range cannot be read.
            DataError: the whole shard cannot be read.
        """
        ...

    def forget(self, shard: str, offset: int, size: int) -> bool:
        """Drops what is kept of a range whose bytes were wrong. Returns whether another read may give others."""
        ...


class LocalStore:
    """Tars in a folder, read by ``pread``; few are open at a time.

    Args:
        folder: where the tars lie.
        max_open: the most files that are open at once; the one that was not used for longest is closed first.
        tally: counts what is read.
    """

    keeps_up = False

    def __init__(self, folder: str | Path, max_open: int = MAX_OPEN_SHARDS, tally: Tally | None = None) -> None:
        self.folder = Path(folder)
        self.tally = tally
        self._open: OpenFiles[Descriptor] = OpenFiles(max_open)

    @property
    def num_open(self) -> int:
        """Files that are open now."""
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
