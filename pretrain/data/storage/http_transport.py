"""Files of a set, and ranges of them, on a web server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pretrain.data.storage.http_client import SIMULTANEOUS, HttpClient
from pretrain.data.storage.location import Location


class HttpTransport:
    """See ``Transport``. Connections are kept and belong to one process.

    Args:
        location: the URL of the set.
        timeout_s: for a connection, and for each 4 MiB.
    """

    ranged = True

    def __init__(self, location: Location, *, timeout_s: float) -> None:
        self.location, self.client = location, HttpClient(timeout_s)

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """See ``Transport.get``."""
        return b"".join(self.client.pieces(self.location.address(name), start, size, most_bytes=most_bytes))

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        return self.client.pieces(self.location.address(name), most_bytes=most_bytes)

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: a HEAD for each file, some at a time."""
        with ThreadPoolExecutor(SIMULTANEOUS) as pool:
            found = pool.map(lambda name: self.client.size(self.location.address(name)), names)
            for name, (known, size) in zip(names, found, strict=True):
                if known:
                    yield name, size
