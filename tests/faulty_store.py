"""A proxy before a real object store that spoils chosen requests."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

ERROR = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>by the test</Message></Error>"

# Google's protocol is that of S3 with another header; its client sends an empty one to a server without login.
GOOGLE_AS_S3 = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Store:
    """Hands requests on to another server, except where ``fault`` says otherwise.

    Attributes:
        fault: (method, path, query, number of this request from 0) → None, or one of

            error: 503 · denied: 403 · reset: half of the body is read, then the connection is reset · flip: one bit of
            the body is changed · drop: answered with success and forgotten · stall: no answer · hold: handed on once
            ``released`` is set.
        requests: (method, path, query) of every request, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.host = urlsplit(upstream).netloc
        self.fault: Callable[[str, str, str, int], str | None] = lambda method, path, query, number: None
        self.requests: list[tuple[str, str, str]] = []
        self.closing, self.released = threading.Event(), threading.Event()
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                store.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

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

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts, size = urlsplit(handler.path), int(handler.headers.get("Content-Length", 0))
        # without the id of an upload, which is different each time
        query = "&".join(part for part in parts.query.split("&") if not part.startswith("uploadId"))
        place = handler.command, unquote(parts.path), query
        with self.lock:
            kind = self.fault(*place, self.seen[place])
            self.seen[place] += 1
            self.requests.append(place)
        if kind == "stall":
            self.closing.wait()
            return
        if kind == "hold":
            self.released.wait()
        body = handler.rfile.read(size // 2 if kind == "reset" else size)
        if kind == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close()
            return
        if kind == "flip":
            body = bytes([body[0] ^ 1]) + body[1:]
        if kind in ("error", "denied", "drop"):
            status, headers, answer = {
                "error": (503, {"Retry-After": "0"}, ERROR % b"SlowDown"),
                "denied": (403, {}, ERROR % b"AccessDenied"),
                "drop": (200, {"ETag": '"0"'}, b""),
            }[kind]
        else:
            status, headers, answer = self._forwarded(handler, body)
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(answer))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer)

    def _forwarded(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in handler.headers.items() if value.strip() != "Bearer"}
        if "authorization" not in map(str.lower, headers):
            headers["Authorization"] = GOOGLE_AS_S3
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.request(handler.command, handler.path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read()
            dropped = {"connection", "transfer-encoding", "date", "server"} | ({"content-length"} if answer else set())
            kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
            return response.status, kept, answer
        finally:
            connection.close()

    def close(self) -> None:
        self.closing.set()
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def store_before(upstream: str) -> Iterator[Store]:
    store = Store(upstream)
    try:
        yield store
    finally:
        store.close()
