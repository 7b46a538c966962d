"""Ranges of files on a web server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import urllib3

from pretrain.data.location import Location
from pretrain.data.transport import PIECE_BYTES, Missing, TransportError, byte_range, gathered, paced
from pretrain.errors import DataError

_TRY_AGAIN = frozenset({408, 425, 429})
_NO_RETRIES = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5, raise_on_status=False)
_SIMULTANEOUS = 16


class HttpTransport:
    """See ``Transport``. Connections are kept and belong to one process.

    Args:
        location: the URL of the set.
        timeout_s: for a connection, and for each 4 MiB.
    """

    ranged = True

    def __init__(self, location: Location, *, timeout_s: float) -> None:
        self.location, self.timeout_s = location, timeout_s
        self._manager: urllib3.PoolManager | None = None

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See ``Transport.get``."""
        return gathered(self._stream(name, start, size), size, self.timeout_s)

    def pieces(self, name: str) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        yield from paced(self._stream(name, 0, None), self.timeout_s)

    def _stream(self, name: str, start: int, size: int | None) -> Iterator[bytes]:
        headers = {} if size is None else {"Range": byte_range(start, size)}
        try:
            response = self._request("GET", name, headers)
            try:
                self._check(response, name, start, size)
                yield from response.stream(PIECE_BYTES)
                response.release_conn()
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise TransportError(_in_words(error)) from error

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: a HEAD for each file, some at a time."""
        with ThreadPoolExecutor(_SIMULTANEOUS) as pool:
            for name, (known, size) in zip(names, pool.map(self._size, names), strict=True):
                if known:
                    yield name, size

    def _size(self, name: str) -> tuple[bool, int | None]:
        try:
            response = self._request("HEAD", name, {})
        except urllib3.exceptions.HTTPError:
            return False, None  # the read itself will try again, and say why
        length = response.headers.get("Content-Length", "")
        if response.status in (404, 410):
            return True, None
        return (True, int(length)) if response.status == 200 and length.isdigit() else (False, None)

    def _request(self, method: str, name: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        if self._manager is None:
            self._manager = urllib3.PoolManager(maxsize=_SIMULTANEOUS)
        return self._manager.request(
            method,
            self.location.url(name),
            headers={"Accept-Encoding": "identity", **headers},
            preload_content=False,
            retries=_NO_RETRIES,
            timeout=urllib3.Timeout(connect=self.timeout_s, read=self.timeout_s),
        )

    def _check(self, response: urllib3.BaseHTTPResponse, name: str, start: int, size: int | None) -> None:
        status, url = response.status, self.location.url(name)
        if status in _TRY_AGAIN or status >= 500:
            raise TransportError(f"HTTP {status} {response.reason}", _seconds(response.headers.get("Retry-After")))
        if status in (404, 410):
            raise Missing(f"{url}: not there (HTTP {status})")
        if status in (401, 403):
            raise DataError(f"{url}: the server does not allow it (HTTP {status}); put what it needs into the URL")
        if status == 416:
            raise DataError(f"{url}: the file ends before byte {start}: truncated, or not the file that was indexed")
        if size is not None and status == 200:
            raise DataError(
                f"{url}: the server ignores Range requests; use one that answers them (nginx, Apache, any object "
                "store), or a command: pipe:curl -sf …/{name}"
            )
        if status not in (200, 206):
            raise DataError(f"{url}: unexpected answer, HTTP {status} {response.reason}")
        given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if status == 206 and given and int(given[1]) != start:
            raise TransportError(f"bytes from {given[1]} on, not from {start}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_manager": None}


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdigit() else 0.0


def _in_words(error: Exception) -> str:
    """urllib3's message without its pool and its nested exceptions."""
    text = str(error.args[-1] if error.args else error)
    return re.sub(r"<[^>]*>: |HTTP\w*Pool\([^)]*\):? ?", "", text)[:200] or type(error).__name__
