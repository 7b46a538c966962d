"""Where the bytes of the tars come from."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from pretrain.data.faults import BadSample
from pretrain.data.tally import Tally
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
        self.max_open, self.tally = max_open, tally
        self._open: OrderedDict[str, int] = OrderedDict()

    @property
    def num_open(self) -> int:
        """Files that are open now."""
        return len(self._open)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """See ``Store.read``."""
        try:
            data = os.pread(self._descriptor(shard), size, offset)
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
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: str) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= self.max_open:
            os.close(self._open.popitem(last=False)[1])
        try:
            self._open[shard] = os.open(self.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"shard {self.folder / shard} cannot be opened: {error.strerror}") from error
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        if os is not None:  # the interpreter may be on its way out
            self.close()
