"""Object stores (S3, Google Cloud Storage, Azure Blob Storage) through the library obstore.

``ObjectTransport`` reads data sets; ``ObjectFolder`` reads and writes a folder of files. Uploads of large files consist
of several parts, each of which the library repeats. It finds credentials in the environment; those of S3 are found by
boto3, so that profiles work. This is the only module that uses obstore.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from pretrain import disk
from pretrain.config.object_stores import STORES
from pretrain.config.schema.cluster import RemoteConfig
from pretrain.data.storage.location import Location
from pretrain.data.storage.transport import (
    LARGEST_ANSWER,
    PIECE_BYTES,
    TIMED_BYTES,
    GaveUp,
    Missing,
    Refused,
    Retries,
    TransportError,
    Unreachable,
    bounded,
    gathered,
    paced,
    too_long,
)
from pretrain.errors import DataError, SetupError
from pretrain.names import printable

PART_BYTES = 8 << 20
MOST_PARTS = 9_000  # S3 takes at most 10,000 parts
PARTS_AT_ONCE = 4
CREDENTIALS_S = 300  # after which boto3 is asked again, which renews those that expire
_TRIES = 2  # of a complete operation, whose requests the library repeats on its own
_NOT_FINAL = frozenset({"InvalidPart", "NoSuchUpload", "RequestTimeout", "SlowDown", "InvalidBlockList"})
T = TypeVar("T")


def open_store(address: str, config: RemoteConfig, *, retries: int, request_s: float) -> Any:
    """obstore's client for the folder at an address. It must not be inherited by a forked process.

    Args:
        address: ``s3://BUCKET/PREFIX``, ``gs://…`` or ``az://…``.
        config: endpoint and time limits.
        retries: how often the library repeats a failed request.
        request_s: time limit of one request, with its body.

    Raises:
        SetupError: a package is missing. DataError: there are no credentials, or the client cannot be made from them.
    """
    scheme = address.partition("://")[0]
    require_client(scheme, address)
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    limits = {name: timedelta(seconds=config.timeout_s) for name in ("connect_timeout", "read_timeout")}
    options: dict[str, Any] = _s3_options(address, config) if scheme == "s3" else {}
    try:
        return from_url(
            address,
            client_options={**limits, "timeout": timedelta(seconds=request_s), "allow_http": True},
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=config.timeout_s * (retries + 1))},
            **options,
        )
    except (BaseError, ValueError) as error:
        raise DataError(f"{address}: {_first_line(error)}; set {STORES[scheme].credentials}") from error


def require_client(scheme: str, address: str) -> None:
    """Raises SetupError if a package is missing that reads this kind of store."""
    try:
        import obstore  # noqa: F401

        if scheme == "s3":
            import boto3  # noqa: F401
    except ImportError as error:
        kind = STORES[scheme]
        raise SetupError(
            f"{address}: {kind.title} needs the package {error.name}; install it with: "
            f"pip install 'vit-pretrain[{kind.extra}]'"
        ) from error


def _s3_options(address: str, config: RemoteConfig) -> dict[str, Any]:
    from boto3.session import Session

    session = Session()
    endpoint = {} if config.s3_endpoint is None else {"endpoint": config.s3_endpoint}
    region = {} if session.region_name is None else {"region": session.region_name}
    if config.s3_anonymous:
        return {**endpoint, **region, "skip_signature": True}
    found = session.get_credentials()
    if found is None:
        kind = STORES["s3"]
        raise DataError(
            f"{address}: no credentials for S3; set {kind.credentials}, or {kind.public} for a public bucket"
        )

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(timezone.utc) + timedelta(seconds=CREDENTIALS_S),
        }

    return {**endpoint, **region, "credential_provider": current}


def _judged(error: BaseException, url: str) -> Exception:
    """The error of the project for one of obstore's, whose first lines have the store's answer."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>\s*([A-Za-z0-9]{1,80})", text)
    number, name = int(status[1]) if status else 0, code[1] if code else ""
    said = " ".join(part for part in (f"HTTP {number}" if number else "", name) if part)
    kind = STORES[url.partition("://")[0]]
    if name in ("NoSuchBucket", "ContainerNotFound"):
        return Missing(f"{url}: there is no such bucket ({said})", "http_404")
    if isinstance(error, FileNotFoundError) or number == 404:
        return Missing(f"{url}: not there" + (f" ({said})" if said else ""), "http_404")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or number in (401, 403):
        return Refused(
            f"{url}: the store does not allow it ({said}); check the bucket's policy and the credentials: "
            f"{kind.credentials}",
            "http_403",
        )
    if number == 416:
        return DataError(f"{url}: the object ends before the bytes that were asked for: truncated, or another file")
    if 400 <= number < 500 and number not in (408, 425, 429) and name not in _NOT_FINAL:
        return Refused(f"{url}: the store refused it: {_first_line(error)}", f"http_{number}")
    if "token request" in text or "credential" in text.lower():
        return Refused(f"{url}: no usable credentials ({_first_line(error)}); set {kind.credentials}", "credentials")
    return TransportError(said or _first_line(error))


def _first_line(error: BaseException) -> str:
    line = str(error).split("\n\nDebug source")[0]
    return printable(" ".join(re.sub(r"<[^>]*>", " ", line).split()))[:300]


class ObjectTransport:
    """See ``Transport``. The client belongs to one process.

    Args:
        location: of the set, in an object store.
        config: endpoint and time limits.

    Raises:
        SetupError: a package is missing.
    """

    ranged = True

    def __init__(self, location: Location, config: RemoteConfig) -> None:
        self.location, self.config = location, config
        self._made: Any = None
        require_client(location.kind, str(location))  # fail here, before a data process is started

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """See ``Transport.get``."""
        return gathered(self._stream(name, start, size, most_bytes), size, self.config.timeout_s)

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        return paced(self._stream(name, 0, None, most_bytes), self.config.timeout_s)

    def _stream(self, name: str, start: int, size: int | None, most_bytes: int | None) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        url, most = self.location.url(name), most_bytes or LARGEST_ANSWER
        wanted = {} if size is None else {"range": (start, start + size)}
        try:
            answer = obstore.get(self._store, name, options=wanted)
            total = int(answer.meta["size"])
            if size is None and total > most:
                raise too_long(url, most)
            if size is not None and total < start + size:
                raise DataError(
                    f"{url}: the object ends at byte {total:,}, before byte {start + size:,}: truncated, or not the "
                    "file that was indexed"
                )
            yield from bounded((bytes(piece) for piece in answer.stream(min_chunk_size=PIECE_BYTES)), most, url)
        except (BaseError, OSError, ValueError) as error:
            raise _judged(error, url) from error

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: lists the prefix, a thousand objects per request."""
        from obstore.exceptions import BaseError

        try:
            found = _listed(self._store, "")
        except (BaseError, OSError, DataError):
            return  # listing may be forbidden where reading is not
        yield from ((name, found.get(name)) for name in names)

    @property
    def _store(self) -> Any:
        if self._made is None:
            # no limit for a complete request: a body may have any size, and ``paced`` watches its pace
            self._made = open_store(
                self.location.base, self.config, retries=0, request_s=timedelta(days=1).total_seconds()
            )
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


def _listed(store: Any, below: str) -> dict[str, int]:
    import obstore

    return {item["path"]: int(item["size"]) for page in obstore.list(store, below or None) for item in page}


class ObjectFolder:
    """A folder in an object store. Every call repeats failed requests, and raises DataError if none succeeds.

    Args:
        address: ``s3://BUCKET/PREFIX``, ``gs://…`` or ``az://…``.
        config: attempts, time limits and endpoint.
    """

    def __init__(self, address: str, config: RemoteConfig) -> None:
        self.address, self._config = address, config
        self._made: Any = None

    def url(self, name: str) -> str:
        """The address of one of its files."""
        return f"{self.address}/{name}"

    def files(self, below: str = "") -> dict[str, int]:
        """Name → size in bytes of all files, also in folders below."""
        return self._doing(below, lambda: _listed(self._store, below))

    def read(self, name: str, *, most_bytes: int = 1 << 24) -> bytes:
        """The content of a small file. Raises: Missing if it does not exist."""
        import obstore

        def attempt() -> bytes:
            answer = obstore.get(self._store, name)
            if answer.meta["size"] > most_bytes:
                raise too_long(self.url(name), most_bytes)
            return bytes(answer.bytes())

        return self._doing(name, attempt)

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """The content of a file of ``size`` bytes in order, in constant memory, several ranges at once."""
        import obstore

        for start in range(0, size, PART_BYTES * PARTS_AT_ONCE):
            stop = min(size, start + PART_BYTES * PARTS_AT_ONCE)
            starts = list(range(start, stop, PART_BYTES))
            ends = [min(stop, one + PART_BYTES) for one in starts]
            yield from self._doing(
                name,
                lambda starts=starts, ends=ends: [
                    bytes(part) for part in obstore.get_ranges(self._store, name, starts=starts, ends=ends, coalesce=0)
                ],
            )

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file; it appears with all of its content."""
        import obstore

        self._doing(name, lambda: obstore.put(self._store, name, content, use_multipart=False))

    def upload(self, name: str, path: Path) -> None:
        """Uploads a file, in parts if it is large; it appears with all of its content."""
        import obstore

        part = max(PART_BYTES, -(-path.stat().st_size // MOST_PARTS))

        def put(path: Path) -> None:
            obstore.put(self._store, name, path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)

        self._doing(name, lambda: disk.current.read_with(path, put))

    def check_writable(self) -> None:
        """Writes, reads and removes a small file. Raises: DataError if one of them fails."""
        name, content = f".writable-{uuid.uuid4().hex}", b"written to find out whether this folder can be written"
        self.write(name, content)
        found = self.read(name)
        self.remove([name])
        if found != content:
            raise DataError(f"{self.url(name)} was written, but reads back differently: use another store")

    def remove(self, names: list[str]) -> None:
        """Removes files, in this order; those that do not exist count as removed."""
        import obstore

        for name in names:

            def attempt(name: str = name) -> None:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._store, name)

            self._doing(name, attempt)

    def _doing(self, name: str, attempt: Callable[[], T]) -> T:
        from obstore.exceptions import BaseError

        url = self.url(name) if name else self.address

        def once() -> T:
            try:
                return attempt()
            except (BaseError, OSError, ValueError) as error:
                raise _judged(error, url) from error

        try:
            return Retries(_TRIES).again(once)
        except GaveUp as error:
            raise Unreachable(f"{url}: {error}") from error

    @property
    def _store(self) -> Any:
        if self._made is None:
            config = self._config
            request_s = config.timeout_s * (1 + PART_BYTES // TIMED_BYTES)
            self._made = open_store(self.address, config, retries=config.attempts - 1, request_s=request_s)
        return self._made
