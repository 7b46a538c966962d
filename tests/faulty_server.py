"""A real web server on loopback that serves a folder, or another server, with faults put in between."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]
KINDS = ("stall", "reset", "truncate", "error", "wrong_bytes")


class Server:
    """Answers of ``serve``, spoiled by ``fault``.

    Attributes:
        fault: (path, number of the request for that path and range, from 0) → one of ``KINDS``, or None.
        sent: path → bytes of bodies that were sent for it.
        requests: number of GET requests.
    """

    def __init__(self, serve: Callable[[str, str, dict[str, str]], Answer]) -> None:
        self.serve = serve
        self.fault: Callable[[str, int], str | None] = lambda path, number: None
        self.sent: Counter[str] = Counter()
        self.requests = 0
        self.closing = threading.Event()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def do_HEAD(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that gave up are what is tested here

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = unquote(urlsplit(handler.path).path), handler.headers.get("Range", "")
        status, headers, body = self.serve(handler.command, handler.path, dict(handler.headers.items()))
        kind = None
        if handler.command == "GET":
            with self.lock:
                kind = self.fault(path, self.seen[path, wanted])
                self.seen[path, wanted] += 1
                self.requests += 1
                self.sent[path] += len(body)
        if kind == "error":
            status, headers, body = 503, {"Retry-After": "0"}, b"<Error><Code>SlowDown</Code></Error>"
        if kind == "wrong_bytes":
            body = bytes([body[0] ^ 1]) + body[1:-1] + bytes([body[-1] ^ 1])
        if kind == "stall":
            self.closing.wait()  # no answer at all: the client has to give up
            return
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(body[: len(body) // 2] if kind in ("truncate", "reset") else body)
        if kind in ("truncate", "reset"):
            handler.wfile.flush()
            if kind == "reset":  # RST and not FIN
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR) if kind == "truncate" else handler.connection.close()


def folder_server(folder: Path, *, ranges: bool = True) -> Server:
    """Serves the files below a folder; without ``ranges`` as servers do that know no Range."""

    def serve(method: str, target: str, headers: dict[str, str]) -> Answer:
        file = folder / unquote(urlsplit(target).path).lstrip("/")
        if not file.is_file():
            return 404, {}, b"not here"
        if method == "HEAD":
            return 200, {"Content-Length": str(file.stat().st_size)}, b""
        data = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if not (wanted and ranges):
            return 200, {}, data
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        if first >= len(data):
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    return Server(serve)


def proxy_server(upstream: str) -> Server:
    """Hands every request on to another server."""
    host = urlsplit(upstream).netloc

    def serve(method: str, target: str, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=20)
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            body = response.read()
            dropped = {"connection", "transfer-encoding", "date", "server"} | ({"content-length"} if body else set())
            kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            return response.status, kept, body
        finally:
            connection.close()

    return Server(serve)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.close()
