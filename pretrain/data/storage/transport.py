"""Requests for ranges of remote files: a ``Transport`` makes one attempt, and ``Retries`` repeats it.

A response that is too short, too slow or interrupted is retried, as is a server failure. A permanent failure (the file
is missing, forbidden, or does not have the indexed size) is an error at once. A short response never counts as the end
of a file.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pretrain.data.storage.location import Location
from pretrain.errors import DataError
from pretrain.names import printable

PIECE_BYTES = 1 << 16
TIMED_BYTES = 4 << 20  # time limits apply to this many bytes
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
LARGEST_ANSWER = 1 << 30  # bytes of a file of unknown size for which the caller sets no other limit
_GZIP_OR_ZLIB = 47  # for zlib: detect the format from the header
T = TypeVar("T")
_jitter = random.Random()  # a separate generator, since users' code may depend on the global one


class TransportError(Exception):
    """This attempt failed, but a retry may succeed. ``pause_s``: the time that the server asked to wait."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class GaveUp(Exception):
    """Every attempt failed. The message gives their number, the time spent, and the last error."""

    def __init__(self, attempts: int, elapsed_s: float, last: TransportError) -> None:
        super().__init__(f"{attempts} attempts in {elapsed_s:.1f} s failed, the last with: {last}")


class Refused(DataError):
    """The store refused to send the file. ``kind`` is one word to count by."""

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Missing(Refused):
    """The file does not exist."""


class Unreachable(DataError):
    """Every attempt failed."""


class Transport(Protocol):
    """One way to read remote files. Must be picklable; connections are left out.

    Attributes:
        ranged: whether parts of a file can be requested.
    """

    location: Location
    ranged: bool

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """Requests ``size`` bytes from ``start`` on, once; None: the entire file, of at most ``most_bytes``.

        Raises:
            TransportError: a retry may succeed. DataError: it will not.
        """
        ...

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """Requests the entire file once, and yields pieces of any size. Raises as ``get``."""
        ...

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """Each file's size in bytes, None if it does not exist; yields nothing if sizes cannot be known."""
        ...


@dataclass(frozen=True)
class Retries:
    """Retry policy: the pause starts at ``FIRST_PAUSE_S`` and doubles, times a random factor of 0.5 … 1."""

    attempts: int = 6
    first_pause_s: float = FIRST_PAUSE_S

    def again(self, attempt: Callable[[], T], *, retried: Callable[[], None] = lambda: None) -> T:
        """Calls ``attempt`` until it succeeds; calls ``retried`` before each retry.

        Raises:
            GaveUp: no attempt succeeded.
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
        """``transport.get`` with retries; calls ``retried`` before each retry.

        Raises:
            Unreachable: no attempt succeeded; names file, URL, bytes, attempts and the last reason.
            DataError: as ``Transport.get``.
        """
        try:
            return self.again(lambda: transport.get(name, start, size, most_bytes=most_bytes), retried=retried)
        except GaveUp as error:
            part = "" if size is None else f", bytes {start} to {start + size - 1}"
            raise Unreachable(cannot_be_read(transport, name, part, error)) from error

    def pause(self, attempt: int, error: TransportError) -> None:
        """Waits after the ``attempt``-th attempt."""
        grown = min(LONGEST_PAUSE_S, self.first_pause_s * 2 ** min(attempt - 1, 32))
        time.sleep(max(grown * _jitter.uniform(0.5, 1.0), min(error.pause_s, LONGEST_PAUSE_S)))


def cannot_be_read(transport: Transport, name: str, part: str, error: GaveUp) -> str:
    """The message to the user after the last attempt."""
    return (
        f"{name} cannot be read from {transport.location.url(name)}{part}: {error}. The run can be resumed when the "
        "store answers; cluster.remote.attempts and cluster.remote.timeout_s set how long it is waited for"
    )


def as_it_comes(response: Any) -> Iterator[bytes]:
    """A response's bytes as they arrive, not in blocks of a fixed size, so that time limits are checked in between."""
    while piece := response.read1(PIECE_BYTES, decode_content=False):
        yield piece


def decoded(pieces: Iterator[bytes], encoding: str, url: str) -> Iterator[bytes]:
    """Decompresses a response in small steps, since a few bytes may expand to any number.

    Args:
        pieces: of the response.
        encoding: its Content-Encoding.
        url: without credentials, for messages.

    Raises:
        TransportError: the encoded bytes are damaged or cut off. Refused: the encoding is unknown.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        yield from pieces
        return
    if name not in ("gzip", "x-gzip", "deflate"):
        raise Refused(
            f"{url}: encoded as {printable(name[:40])!r}, although no encoding was asked for; switch it "
            "off at the server",
            "encoding",
        )
    decoder, begun = zlib.decompressobj(_GZIP_OR_ZLIB), False
    try:
        for piece in pieces:
            begun = True
            while piece:
                if decoder.eof:  # a gzip file may consist of several members
                    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
                yield decoder.decompress(piece, PIECE_BYTES)
                piece = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    except zlib.error as error:
        raise TransportError(f"the answer's {name} cannot be undone") from error
    if begun and not decoder.eof:
        raise TransportError(f"short read: the answer's {name} ends too early")


def gathered(pieces: Iterable[bytes], size: int | None, timeout_s: float) -> bytes:
    """Joins a response's pieces, checks their total size, and enforces a time limit that grows with their bytes.

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
    """Yields the pieces, with a time limit that grows with their bytes: ``timeout_s`` for each 4 MiB.

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
    """Yields the pieces, up to ``most_bytes`` in total.

    Raises:
        Refused: there are more bytes.
    """
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > most_bytes:
            raise too_long(name, most_bytes)
        yield piece


def too_long(name: str, most_bytes: int) -> Refused:
    """The error for a response of more than ``most_bytes``."""
    return Refused(f"{name}: the answer is longer than {most_bytes:,} bytes; given up", "too_long")


def byte_range(start: int, size: int) -> str:
    """The value of a Range header."""
    return f"bytes={start}-{start + size - 1}"
