"""Validates responses of web servers: status, length, encoding, and the time to wait after a failure.

A response is never trusted: its length is compared with the announced one, its size is limited, and it is decompressed
within that limit.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import urllib3

from pretrain.data.storage.transport import PIECE_BYTES, Missing, Refused, TransportError
from pretrain.errors import DataError
from pretrain.names import printable
from pretrain.redaction import redacted

_TRY_AGAIN = frozenset({408, 425, 429})
_GZIP_OR_ZLIB = 47  # for zlib: detect the format from the header


def check_answer(response: urllib3.BaseHTTPResponse, address: str, start: int, size: int | None) -> None:
    """Checks that the head of a response matches the requested bytes.

    Args:
        response: the response; only its head is read.
        address: the requested URL.
        start: first byte of the requested range.
        size: bytes of that range; None: the complete file.

    Raises:
        TransportError: a retry may succeed. DataError: it will not.
    """
    status, url = response.status, redacted(address)
    if status in _TRY_AGAIN or status >= 500:
        raise TransportError(_status(status), _pause(response.headers))
    if status in (404, 410):
        raise Missing(f"{url}: not there (HTTP {status})", f"http_{status}")
    if status in (401, 403):
        raise Refused(
            f"{url}: the server does not allow it (HTTP {status}); put what it needs into the URL", f"http_{status}"
        )
    if status == 416:
        raise DataError(f"{url}: the file ends before byte {start}: truncated, or not the file that was indexed")
    if status not in (200, 206):
        raise Refused(f"{url}: unexpected answer, {_status(status)}", f"http_{status}")
    if size is None:
        if status == 206:
            raise Refused(f"{url}: a part of the file (HTTP 206), although all of it was asked for", "http_206")
        return
    if status == 200 and (start or not (is_encoded(response) or length(response)[1] in (None, size))):
        raise ignores_ranges(address)
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if status == 206 and given and int(given[1]) != start:
        raise TransportError(f"bytes from {given[1][:20]} on, not from {start}")
    if status == 206 and is_encoded(response):
        raise DataError(f"{url}: the server compresses parts of files; switch that off there for shards")


def body(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """A response's bytes as they arrive, not in blocks of a fixed size, so that time limits are checked in between."""
    while piece := response.read1(PIECE_BYTES, decode_content=False):
        yield piece


def decoded(pieces: Iterator[bytes], encoding: str, address: str) -> Iterator[bytes]:
    """Decompresses a response in small steps, since a few bytes may expand to any number.

    Raises:
        TransportError: the encoded bytes are damaged or cut off. Refused: the encoding is unknown.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        yield from pieces
        return
    if name not in ("gzip", "x-gzip", "deflate"):
        raise Refused(
            f"{redacted(address)}: encoded as {printable(name[:40])!r}, although no encoding was asked for; switch it "
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


def is_encoded(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether the body is compressed."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")


def length(response: urllib3.BaseHTTPResponse) -> tuple[bool, int | None]:
    """Whether the response states its length, and the length in bytes."""
    text = response.headers.get("Content-Length", "").strip()
    return (True, int(text)) if re.fullmatch(r"[0-9]{1,18}", text) else (False, None)


def too_long(response: urllib3.BaseHTTPResponse, address: str, size: int | None, most: int) -> Exception:
    """The error for a body of more than ``most`` bytes, for a request of ``size`` bytes (None: all)."""
    if size is not None and response.status == 200:
        return ignores_ranges(address)
    if size is not None:
        return TransportError(f"more than the {size} bytes that were asked for")
    return Refused(f"{redacted(address)}: the answer is longer than {most:,} bytes; given up", "too_long")


def ignores_ranges(address: str) -> DataError:
    """The error for a server that only sends complete files."""
    return DataError(
        f"{redacted(address)}: the server ignores Range requests; use one that answers them (nginx, Apache, any object "
        "store), or a command: pipe:curl -sf …/{name}"
    )


def _status(status: int) -> str:
    """A status with its standard phrase; the server's own phrase may contain anything."""
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _pause(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait. A date is compared with the server's own clock."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - parsedate_to_datetime(headers["Date"])).total_seconds())
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return 0.0


def in_words(error: Exception) -> str:
    """urllib3's message without its connection pool and nested exceptions."""
    text = str(error.args[-1] if error.args else error)
    text = re.sub(r"<[^>]*>: |_?Https?\w*\([^)]*\):? ?", "", text, flags=re.IGNORECASE)
    return printable(text)[:200] or type(error).__name__
