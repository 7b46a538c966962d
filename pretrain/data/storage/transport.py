"""Requests for ranges of remote files: a ``Transport`` makes one try, and ``Retries`` repeats it for all of them.

An answer that is too short, too slow or broken off is tried again, as is a failure of the server. What no second try
can change (the file is not there, not allowed, not of the size that was indexed) is an error at once. A short answer
never counts as the end of a file.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pretrain.data.storage.location import Location
from pretrain.errors import DataError

PIECE_BYTES = 1 << 16
TIMED_BYTES = 4 << 20  # a time limit is for so many bytes
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
LARGEST_ANSWER = 1 << 30  # bytes of a file whose size is not known and for which no other bound is named
T = TypeVar("T")
_jitter = random.Random()  # of its own: the order of a run hangs on no generator, but users' code may


class TransportError(Exception):
    """This try failed; another may not. ``pause_s``: the server asked to wait so long."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class GaveUp(Exception):
    """Every try failed. Its text says how many, how long that took, and how the last one ended."""

    def __init__(self, attempts: int, elapsed_s: float, last: TransportError) -> None:
        super().__init__(f"{attempts} attempts in {elapsed_s:.1f} s failed, the last with: {last}")


class Refused(DataError):
    """The store will not give the file, and says so. ``kind`` is one word to count by."""

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Missing(Refused):
    """The file is not there."""


class Unreachable(DataError):
    """Every try failed."""


class Transport(Protocol):
    """One way to read remote files. Must pickle; connections stay behind.

    Attributes:
        ranged: whether parts of a file can be asked for.
    """

    location: Location
    ranged: bool

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """One try for ``size`` bytes from ``start`` on; None: the whole file, unless it has more than ``most_bytes``.

        Raises:
            TransportError: it may work the next time. DataError: it will not.
        """
        ...

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """One try for the whole file, in pieces of any size. Raises as ``get``."""
        ...

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """Each file's size in bytes, None where it is not there; yields nothing where that cannot be known."""
        ...


@dataclass(frozen=True)
class Retries:
    """How often, and how long between: the pause doubles from ``FIRST_PAUSE_S`` on, times a random 0.5 … 1."""

    attempts: int = 6
    first_pause_s: float = FIRST_PAUSE_S

    def again(self, attempt: Callable[[], T], *, retried: Callable[[], None] = lambda: None) -> T:
        """``attempt``, until one try succeeds; ``retried`` is told each time that it did not.

        Raises:
            GaveUp: no try succeeded.
            DataError: as ``attempt``.
        """
        began, number = time.monotonic(), 1
        while True:
            try:
                return attempt()
            except TransportError as error:
                if number >= self.attempts:
                    raise GaveUp(number, time.monotonic() - began, error) from error
                retried()
                self.pause(number, error)
                number += 1

    def fetch(
        self,
        transport: Transport,
        name: str,
        start: int = 0,
        size: int | None = None,
        *,
        most_bytes: int | None = None,
        retried: Callable[[], None] = lambda: None,
    ) -> bytes:
        """``transport.get``, tried again; ``retried`` is told each time.

        Raises:
            Unreachable: no try succeeded; names file, URL, bytes, tries and the last reason.
            DataError: as ``Transport.get``.
        """
        try:
            return self.again(lambda: transport.get(name, start, size, most_bytes=most_bytes), retried=retried)
        except GaveUp as error:
            part = "" if size is None else f", bytes {start} to {start + size - 1}"
            raise Unreachable(cannot_be_read(transport, name, part, error)) from error

    def pause(self, attempt: int, error: TransportError) -> None:
        """Waits after the ``attempt``-th try."""
        grown = min(LONGEST_PAUSE_S, self.first_pause_s * 2 ** min(attempt - 1, 32))
        time.sleep(max(grown * _jitter.uniform(0.5, 1.0), min(error.pause_s, LONGEST_PAUSE_S)))


def cannot_be_read(transport: Transport, name: str, part: str, error: GaveUp) -> str:
    """What to tell the user of a run after the last try."""
    return (
        f"{name} cannot be read from {transport.location.url(name)}{part}: {error}. The run can be resumed when the "
        "store answers; cluster.remote.attempts and cluster.remote.timeout_s set how long it is waited for"
    )


def gathered(pieces: Iterable[bytes], size: int | None, timeout_s: float) -> bytes:
    """Joins an answer's pieces, within a time limit that grows with their bytes, and counts them.

    Raises:
        TransportError: too slow, too short or too long.
    """
    got, total = [], 0
    for piece in paced(pieces, timeout_s):
        got.append(piece)
        total += len(piece)
        if size is not None and total > size:
            raise TransportError(f"more than the {size} bytes that were asked for")
    if size is not None and total != size:
        raise TransportError(f"short read: {total} of {size} bytes")
    return b"".join(got)


def paced(pieces: Iterable[bytes], timeout_s: float) -> Iterator[bytes]:
    """The pieces, within a time limit that grows with their bytes: ``timeout_s`` for each 4 MiB.

    Raises:
        TransportError: too slow.
    """
    began, total = time.monotonic(), 0
    for piece in pieces:
        total += len(piece)
        elapsed = time.monotonic() - began
        if elapsed > timeout_s * (1 + total // TIMED_BYTES):
            raise TransportError(f"too slow: {total} bytes in {elapsed:.1f} s")
        yield piece


def bounded(pieces: Iterable[bytes], most_bytes: int, name: str) -> Iterator[bytes]:
    """The pieces, as long as they are no more than ``most_bytes`` in all.

    Raises:
        Refused: they are more.
    """
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > most_bytes:
            raise Refused(f"{name}: the answer is longer than {most_bytes:,} bytes; given up", "too_long")
        yield piece


def byte_range(start: int, size: int) -> str:
    """The value of a Range header."""
    return f"bytes={start}-{start + size - 1}"
