"""The HTTP client: this module reads every URL that the project reads.

Each phase of a request has a time limit. Redirects and proxies are handled here, so that credentials are only sent to
their own server. A response is never trusted: its length is compared with the announced one, its size is limited, and
it is decompressed within that limit.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pretrain import threads
from pretrain.data.storage.location import Request, is_web_address, request_for, same_origin
from pretrain.data.storage.transport import (
    LARGEST_ANSWER,
    Missing,
    Refused,
    TransportError,
    as_it_comes,
    byte_range,
    decoded,
    paced,
    too_long,
)
from pretrain.errors import DataError
from pretrain.names import printable
from pretrain.redaction import redacted

SIMULTANEOUS = 16
MOST_REDIRECTS = 5
_SMALL_BODY = 1 << 16  # body of a redirect that is read, so that the connection can be reused
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 425, 429})


class HttpClient:
    """Reuses connections to web servers. It can be pickled; the connections are left out.

    Args:
        timeout_s: to connect, to receive the head of a response, and for each 4 MiB of its body.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._managers: dict[str, urllib3.PoolManager] = {}

    def pieces(
        self, address: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None
    ) -> Iterator[bytes]:
        """Requests a file once, or ``size`` bytes of it from ``start`` on; yields pieces of any size.

        Args:
            address: the URL.
            start: first byte.
            size: bytes; None: all.
            most_bytes: a longer response is refused; None: ``LARGEST_ANSWER``.

        Raises:
            TransportError: a retry may succeed. DataError: it will not.
        """
        if size is None:
            yield from paced(self._answer(address, 0, None, most_bytes or LARGEST_ANSWER), self.timeout_s)
        else:
            yield from paced(self._range(address, start, size), self.timeout_s)

    def size(self, address: str) -> tuple[bool, int | None]:
        """Whether a file's size can be known without reading it, and the size; None: the file does not exist."""
        try:
            response = self._open("HEAD", address, {})
            response.drain_conn()  # a HEAD has no body, but only a drained connection can be reused
            response.release_conn()
            if response.status == 200 and not _is_encoded(response):
                return _length(response)
            with_range = self._open("GET", address, {"Range": byte_range(0, 1)})
            with_range.close()
        except (TransportError, DataError):
            return False, None  # the read itself will try again, and report the reason
        if with_range.status in (404, 410):
            return True, None
        total = re.fullmatch(r"bytes 0-\d+/(\d{1,18})", with_range.headers.get("Content-Range", ""), re.ASCII)
        return (True, int(total[1])) if with_range.status == 206 and total else (False, None)

    def _range(self, address: str, start: int, size: int) -> Iterator[bytes]:
        """Some servers deliberately send less than requested; the rest is then requested again."""
        end = start + size
        while start < end:
            before = start
            for piece in self._answer(address, start, end - start, end - start):
                start += len(piece)
                yield piece
            if start == before:
                raise TransportError(f"short read: {size - (end - start)} of {size} bytes")

    def _answer(self, address: str, start: int, size: int | None, most: int) -> Iterator[bytes]:
        """The decoded body of one response."""
        response = self._open("GET", address, {} if size is None else {"Range": byte_range(start, size)})
        done = False
        try:
            _check_answer(response, address, start, size)
            stated = _length(response)[1]
            if stated is not None and stated > most and not _is_encoded(response):  # do not wait for a refused body
                raise _too_long(response, address, size, most)
            total = 0
            for piece in decoded(
                as_it_comes(response), response.headers.get("Content-Encoding", ""), redacted(address)
            ):
                total += len(piece)
                if total > most:
                    raise _too_long(response, address, size, most)
                yield piece
            done = True
        except urllib3.exceptions.HTTPError as error:
            raise TransportError(_in_words(error)) from error
        finally:
            response.release_conn() if done else response.close()

    def _open(self, method: str, address: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """The head of a response, after following redirects."""
        url, authorization = request_for(address)
        origin = url
        for _ in range(MOST_REDIRECTS + 1):
            sent = {"Accept-Encoding": "identity", **headers}
            if authorization and same_origin(url, origin):
                sent["Authorization"] = authorization
            response = self._request(method, url, sent)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return response
            self._leave(response)
            url, own = _sent_on(url, target, address)
            authorization, origin = (own, url) if own else (authorization, origin)
        raise Refused(f"{redacted(address)}: sent on more than {MOST_REDIRECTS} times", "redirect")

    def _request(self, method: str, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            return self._manager(url).request(
                method,
                url,
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self.timeout_s, read=self.timeout_s),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TransportError(_in_words(error)) from error

    def _leave(self, response: urllib3.BaseHTTPResponse) -> None:
        known, size = _length(response)
        if not known or size is None or size > _SMALL_BODY:
            response.close()
            return
        try:
            for _ in paced(as_it_comes(response), self.timeout_s):
                pass
            response.release_conn()
        except (urllib3.exceptions.HTTPError, TransportError):
            response.close()

    def _manager(self, url: str) -> urllib3.PoolManager:
        """The connection pools for a URL: direct, or through the proxy set in the environment."""
        parts = urlsplit(url)
        proxy = "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme, "")
        if proxy not in self._managers:
            if proxy:
                place, authorization = request_for(proxy if "://" in proxy else f"http://{proxy}")
                allowed = {"Proxy-Authorization": authorization} if authorization else None
                manager = urllib3.ProxyManager(place, proxy_headers=allowed, maxsize=SIMULTANEOUS)
            else:
                manager = urllib3.PoolManager(maxsize=SIMULTANEOUS)
            manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
            self._managers[proxy] = manager
        return self._managers[proxy]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_managers": {}}


class _PromptHead:
    """A connection with a time limit for the entire head of a response, not just between two of its bytes."""

    def getresponse(self: Any) -> Any:
        late, socket, response = threading.Event(), self.sock, None

        def give_up() -> None:
            late.set()
            with suppress(OSError):  # it was closed just now
                socket.shutdown(2)  # wakes the thread that reads from it

        timer = threads.after(self.timeout, "head-of-answer", give_up)
        try:
            response = super().getresponse()  # pyright: ignore[reportAttributeAccessIssue]
        except Exception:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():  # the bytes read so far may look like a complete head
            if response is not None:
                response.close()
            raise TimeoutError(f"timed out: no complete head of an answer within {self.timeout:g} s")
        return response


class _Http(_PromptHead, HTTPConnection):
    pass


class _Https(_PromptHead, HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


def _sent_on(url: str, target: str, address: str) -> Request:
    """The request for a redirect from ``url``; ``address`` is the one that was requested first."""
    # headers are read as Latin-1, but their non-ASCII content is UTF-8
    target = target.encode("latin-1", "ignore").decode("utf-8", "surrogateescape")
    try:
        joined = urljoin(url, target)
        if is_web_address(joined):
            return request_for(joined.partition("#")[0])
    except (ValueError, DataError):  # concerns that place, not the entire source
        joined = target
    raise Refused(f"{redacted(address)}: sent on to {redacted(joined)!r}, which is not a web address", "redirect")


def _check_answer(response: urllib3.BaseHTTPResponse, address: str, start: int, size: int | None) -> None:
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
    if status == 200 and (start or not (_is_encoded(response) or _length(response)[1] in (None, size))):
        raise _ignores_ranges(address)
    given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if status == 206 and given and int(given[1]) != start:
        raise TransportError(f"bytes from {given[1][:20]} on, not from {start}")
    if status == 206 and _is_encoded(response):
        raise DataError(f"{url}: the server compresses parts of files; switch that off there for shards")


def _is_encoded(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether the body is compressed."""
    return response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity")


def _length(response: urllib3.BaseHTTPResponse) -> tuple[bool, int | None]:
    """Whether the response states its length, and the length in bytes."""
    text = response.headers.get("Content-Length", "").strip()
    return (True, int(text)) if re.fullmatch(r"[0-9]{1,18}", text) else (False, None)


def _too_long(response: urllib3.BaseHTTPResponse, address: str, size: int | None, most: int) -> Exception:
    """The error for a body of more than ``most`` bytes, for a request of ``size`` bytes (None: all)."""
    if size is not None and response.status == 200:
        return _ignores_ranges(address)
    if size is not None:
        return TransportError(f"more than the {size} bytes that were asked for")
    return too_long(redacted(address), most)


def _ignores_ranges(address: str) -> DataError:
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


def _in_words(error: Exception) -> str:
    """urllib3's message without its connection pool and nested exceptions."""
    text = str(error.args[-1] if error.args else error)
    text = re.sub(r"<[^>]*>: |_?Https?\w*\([^)]*\):? ?", "", text, flags=re.IGNORECASE)
    return printable(text)[:200] or type(error).__name__
