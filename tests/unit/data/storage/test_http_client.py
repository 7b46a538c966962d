"""HTTP requests to a server with the habits of real ones: the right bytes, or a clear error in bounded time."""

from __future__ import annotations

import gzip
import http.server
import pickle
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from pretrain.data.storage import transport
from pretrain.data.storage.http_client import HttpClient
from pretrain.data.storage.transport import GaveUp, Missing, Refused, Retries, TransportError
from pretrain.errors import DataError

DATA = np.random.default_rng(0).integers(0, 64, 100_000, dtype=np.uint8).tobytes()  # compresses, but not to nothing
HALVES = (DATA[:50_000], DATA[50_000:])
Handle = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with ``handle``, a function of the test."""

    protocol_version = "HTTP/1.1"
    handle_it: Handle
    seen: Counter[str]
    number: int

    def do_GET(self) -> None:
        self.number = self.seen[self.path]
        self.seen[self.path] += 1
        type(self).handle_it(self)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def give(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def part(self, most: int = 1 << 40) -> tuple[int, int]:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, int(first) + most, len(DATA))


class Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that give up are what is tested here


@contextmanager
def serving(handle: Handle) -> Iterator[tuple[str, Counter[str]]]:
    """A server on loopback; gives its URL and the number of requests for each path."""
    kind = type("Given", (Handler,), {"handle_it": handle, "seen": Counter()})
    with Quiet(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind.seen  # pyright: ignore[reportAttributeAccessIssue]
        server.shutdown()


def read(url: str, start: int = 0, size: int | None = None, *, timeout_s: float = 60, **bounds: int) -> bytes:
    client = pickle.loads(pickle.dumps(HttpClient(timeout_s)))
    retries = Retries(4, first_pause_s=0.001)
    return retries.again(lambda: b"".join(client.pieces(url, start, size, **bounds)))


def chunked(handler: Handler) -> None:
    handler.give(200, b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (DATA[:70_000], DATA[70_000:], b"")),
                 Transfer_Encoding="chunked", Content_Length="")  # fmt: skip


def capped(handler: Handler) -> None:
    first, last = handler.part(30_000)
    handler.give(206, DATA[first:last], Content_Range=f"bytes {first}-{last - 1}/{len(DATA)}")


def redirected(handler: Handler) -> None:
    if handler.path.startswith("/x/"):
        handler.give(302, b"moved", Location=("../고 y/?sig=a%2Fb").encode().decode("latin-1"))
    else:
        ok = unquote(handler.path) == "/고 y/?sig=a/b" and handler.path.isascii()
        handler.give(200 if ok else 404, DATA)


def cut(handler: Handler) -> None:
    """The first two answers end too early, in three ways."""
    if handler.number == 0:
        handler.give(200, DATA[:50_000], Content_Length=str(len(DATA)))
        handler.close_connection = True
    elif handler.number == 1:
        handler.give(200, b"186a0\r\n" + DATA[:1000], Transfer_Encoding="chunked", Content_Length="")
        handler.close_connection = True
    elif handler.number == 2:
        body = gzip.compress(DATA)[:-500]
        handler.give(200, body, Content_Encoding="gzip", Content_Length="", Connection="close")
        handler.close_connection = True
    else:
        handler.give(200, DATA)


@pytest.mark.parametrize(
    ("handle", "path", "part"),
    [
        (lambda handler: handler.give(200, DATA), "/a", (0, None)),
        (lambda handler: handler.give(200, DATA), "/a", (0, len(DATA))),  # all of a file may come as 200
        (chunked, "/a", (0, None)),
        (chunked, "/a", (0, len(DATA))),
        (capped, "/a", (5_000, 80_000)),
        (redirected, "/x/y", (0, None)),
        (cut, "/a", (0, None)),
        (lambda handler: handler.give(200, gzip.compress(DATA), Content_Encoding="gzip"), "/a", (0, None)),
        (lambda handler: handler.give(200, zlib.compress(DATA), Content_Encoding="deflate"), "/a", (0, None)),
        (
            lambda handler: handler.give(200, b"".join(map(gzip.compress, HALVES)), Content_Encoding="gzip"),
            "/a",
            (0, None),
        ),
        (lambda handler: handler.give(200, gzip.compress(DATA), Content_Encoding="gzip"), "/a", (0, len(DATA))),
    ],
    ids=["200", "all of a range", "chunked", "chunked for a range", "capped", "redirect", "cut", "gzip", "deflate",
         "two gzips", "gzip for a range"],
)  # fmt: skip
def test_what_servers_do_gives_the_bytes(handle, path, part):
    start, size = part
    with serving(handle) as (url, _):
        assert read(url + path, start, size) == DATA[start:][:size]


def in_two_seconds(**offset: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(**offset), usegmt=True)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("after", ["", "0", "²", "-5", "1e9", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 4000])
def test_a_busy_server_is_asked_again(status, after, monkeypatch):
    monkeypatch.setattr(transport, "LONGEST_PAUSE_S", 0.005)
    after = after.encode().decode("latin-1")
    with serving(lambda handler: handler.give(200 if handler.number == 3 else status, DATA, Retry_After=after)) as (
        url,
        seen,
    ):
        assert read(f"{url}/a") == DATA
        assert seen["/a"] == 4


@pytest.mark.parametrize(
    ("after", "pause"),
    [("7", 7), (lambda: in_two_seconds(seconds=9), 9), (lambda: in_two_seconds(days=3), 30), ("100", 30), ("x", 0.1)],
)
def test_a_server_may_say_how_long_to_wait(after, pause, monkeypatch):
    """In seconds or as a date, and never longer than half a minute."""
    waits: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    handle = lambda handler: handler.give(  # noqa: E731
        200 if handler.number else 429, DATA, Retry_After=after() if callable(after) else after
    )
    with serving(handle) as (url, _):
        retries, client = Retries(2, first_pause_s=0.1), HttpClient(5)
        assert retries.again(lambda: b"".join(client.pieces(f"{url}/a"))) == DATA
    assert len(waits) == 1 and pause * 0.5 <= waits[0] <= pause and (pause < 1 or waits[0] >= pause - 2)


@pytest.mark.parametrize(
    ("handle", "error", "message"),
    [
        (lambda handler: handler.give(404, b"no"), Missing, "not there .HTTP 404"),
        (lambda handler: handler.give(403, b"no"), Refused, "does not allow it .HTTP 403"),
        (
            lambda handler: handler.give(503, b"no"),
            GaveUp,
            "4 attempts in .* the last with: HTTP 503 Service Unavailable",
        ),
        (lambda handler: handler.give(302, b"", Location="file:///etc/passwd"), Refused, "not a web address"),
        (lambda handler: handler.give(302, b"", Location="http://[::1"), Refused, "sent on to .*not a web address"),
        (lambda handler: handler.give(302, b"", Location="http://h:port/"), Refused, "sent on to .*not a web address"),
        (lambda handler: handler.give(302, b"", Location="/again"), Refused, "sent on more than 5 times"),
        (lambda handler: handler.give(200, DATA, Content_Encoding="br"), Refused, "encoded as 'br'"),
        (lambda handler: handler.give(200, DATA, Content_Encoding="gzip, gzip"), Refused, "encoded as 'gzip, gzip'"),
        (lambda handler: handler.give(200, DATA, Content_Encoding="gzip"), GaveUp, "gzip cannot be undone"),
        (lambda handler: handler.give(418, b""), Refused, "unexpected answer, HTTP 418"),
    ],
)
def test_what_cannot_be_had_is_said(handle, error, message):
    with serving(handle) as (url, _), pytest.raises(error, match=message):
        read(f"{url}/a")


@pytest.mark.parametrize(
    ("handle", "error", "message"),
    [
        (lambda handler: handler.give(200, DATA), DataError, "ignores Range requests"),
        (lambda handler: handler.give(416), DataError, "the file ends before byte 500"),
        (
            lambda handler: handler.give(206, DATA[:100], Content_Range="bytes 0-99/100000"),
            GaveUp,
            "from 0 on, not from 500",
        ),
        (lambda handler: handler.give(206, DATA[500:999]), GaveUp, "more than the 100 bytes"),
        (lambda handler: handler.give(206, b"", Content_Range="bytes 500-599/100000"), GaveUp, "short read: 0 of 100"),
        (
            lambda handler: handler.give(206, gzip.compress(DATA[500:600]), Content_Encoding="gzip"),
            DataError,
            "compresses",
        ),
    ],
)
def test_a_part_that_is_not_the_one_asked_for_is_never_used(handle, error, message):
    with serving(handle) as (url, _), pytest.raises(error, match=message):
        read(f"{url}/a", 500, 100)


def endless(handler: Handler) -> None:
    handler.give(200, b"", Content_Length="", Connection="close")
    handler.close_connection = True
    while True:
        handler.wfile.write(DATA)


def bomb(handler: Handler) -> None:
    """Four GiB of zeros in four MiB."""
    packer = zlib.compressobj(9, wbits=31)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    handler.give(200, b"", Content_Encoding="gzip", Content_Length="", Connection="close")
    handler.close_connection = True
    handler.wfile.write(block)
    again = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(255):
        handler.wfile.write(again)


@pytest.mark.parametrize("handle", [endless, bomb])
def test_an_answer_without_an_end_is_given_up(handle):
    with serving(handle) as (url, seen), pytest.raises(Refused, match="longer than 2,000,000 bytes; given up"):
        read(f"{url}/a", most_bytes=2_000_000)
    assert seen["/a"] == 1


def test_an_answer_of_just_the_bound_is_read():
    with serving(lambda handler: handler.give(200, DATA)) as (url, _):
        assert read(f"{url}/a", most_bytes=len(DATA)) == DATA


def promising(handler: Handler) -> None:
    handler.give(200, b"x" * 100, Content_Length=str(10**12))
    time.sleep(3)


@pytest.mark.parametrize(("part", "error"), [((), Refused), ((0, 50), DataError)])
def test_a_length_beyond_the_bound_is_refused_at_once(part, error):
    with serving(promising) as (url, _):
        began = time.monotonic()
        with pytest.raises(error):
            read(f"{url}/a", *part, timeout_s=30, **({} if part else {"most_bytes": 50_000}))
        assert time.monotonic() - began < 2


def test_a_part_that_was_not_asked_for_is_refused():
    def handle(handler: Handler) -> None:
        handler.give(206, HALVES[0], Content_Range=f"bytes 0-49999/{len(DATA)}")

    with serving(handle) as (url, _), pytest.raises(Refused, match="a part of the file"):
        read(f"{url}/a")


def slow_body(handler: Handler) -> None:
    handler.give(200, b"", Content_Length=str(len(DATA)))
    for byte in DATA[:400]:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def slow_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(400):
        handler.wfile.write(b"a")
        time.sleep(0.05)


@pytest.mark.parametrize("handle", [slow_body, slow_head])
def test_a_byte_now_and_then_does_not_keep_the_clock_from_running(handle):
    """Each byte comes well within the time limit. After 20 s the answer would end, with another error."""
    with serving(handle) as (url, _), pytest.raises(TransportError, match=r"too slow|timed out"):
        list(HttpClient(0.5).pieces(f"{url}/a"))


def test_credentials_go_to_their_own_server_only():
    told: list[tuple[str, str | None]] = []

    def elsewhere(handler: Handler) -> None:
        told.append(("other", handler.headers["Authorization"]))
        handler.give(200, DATA)

    with serving(elsewhere) as (other, _):

        def own(handler: Handler) -> None:
            told.append((handler.path, handler.headers["Authorization"]))
            handler.give(302, b"", Location="/b" if handler.path == "/a" else f"{other}/c")

        with serving(own) as (url, _):
            assert read(url.replace("http://", "http://u:secret@") + "/a") == DATA
    assert told == [("/a", "Basic dTpzZWNyZXQ="), ("/b", "Basic dTpzZWNyZXQ="), ("other", None)]


@pytest.mark.parametrize("status", [401, 404, 500])
def test_secrets_and_escapes_stay_out_of_messages(status):
    def handle(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 %d \x1b[31mred\x1b[0m\r\nContent-Length: 0\r\n\r\n" % status)

    with serving(handle) as (url, _), pytest.raises((DataError, GaveUp)) as caught:
        read(url.replace("http://", "http://user:topsecret@") + "/a?token=topsecret")
    assert "topsecret" not in str(caught.value) and "\x1b" not in str(caught.value)


def without_head(handler: Handler, status: int, answer: str) -> None:
    """As servers that know no HEAD, or sign GET only."""
    handler.give(status if handler.command == "HEAD" else 206, b"x", Content_Range=answer)


@pytest.mark.parametrize(
    ("handle", "expected"),
    [
        (lambda handler: handler.give(200, DATA), (True, len(DATA))),
        (lambda handler: without_head(handler, 404, "bytes 0-0/77"), (True, 77)),
        (lambda handler: without_head(handler, 403, "bytes 0-0/*"), (False, None)),
        (lambda handler: handler.give(404), (True, None)),
        (lambda handler: handler.give(503), (False, None)),
        (lambda handler: handler.give(200, b"z" * 9, Content_Encoding="gzip"), (False, None)),
    ],
)  # fmt: skip
def test_a_size_is_known_or_it_is_not_said(handle, expected):
    with serving(handle) as (url, _):
        assert HttpClient(5).size(f"{url}/a") == expected


def test_a_connection_is_used_again():
    ports: set[int] = set()

    def handle(handler: Handler) -> None:
        ports.add(handler.client_address[1])
        handler.give(302, b"moved", Location="/b") if handler.path == "/a" else handler.give(200, DATA)

    with serving(handle) as (url, _):
        client = HttpClient(5)
        for _ in range(3):
            assert client.size(f"{url}/b") == (True, len(DATA))
            assert b"".join(client.pieces(f"{url}/a")) == DATA
    assert len(ports) == 1


def test_a_server_that_hangs_up_or_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(GaveUp, match=r"4 attempts .* Connection refused"):
        read(f"http://127.0.0.1:{port}/a")


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    """Its credentials are sent to it and to nobody else."""
    told: list[tuple[str, str | None]] = []

    def handle(handler: Handler) -> None:
        told.append((handler.path, handler.headers["Proxy-Authorization"]))
        handler.give(200, DATA)

    with serving(handle) as (url, _):
        monkeypatch.setenv("http_proxy", url.replace("http://", "http://u:secret@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert read("http://elsewhere.invalid/a%20b") == DATA
    assert told == [("http://elsewhere.invalid/a%20b", "Basic dTpzZWNyZXQ=")]
