"""Ranges of objects in an S3-compatible store. Needs the extra ``s3`` (boto3); credentials are found as boto3 does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.data.storage.location import Location
from pretrain.data.storage.transport import (
    LARGEST_ANSWER,
    PIECE_BYTES,
    Missing,
    Refused,
    TransportError,
    bounded,
    byte_range,
    gathered,
    paced,
)
from pretrain.errors import DataError, SetupError
from pretrain.names import printable

_NOT_THERE = frozenset({"404", "NoSuchKey"})
_DENIED = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_TRY_AGAIN = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError"})


class S3Transport:
    """See ``Transport``. The client belongs to one process.

    Args:
        location: s3://bucket/prefix.
        timeout_s: for a connection, and for each 4 MiB.
        endpoint: URL of the service; None: AWS, or what the usual variables say.
        anonymous: without credentials.

    Raises:
        SetupError: boto3 is not installed.
    """

    ranged = True

    def __init__(self, location: Location, *, timeout_s: float, endpoint: str | None, anonymous: bool) -> None:
        self.location, self.timeout_s, self.endpoint, self.anonymous = location, timeout_s, endpoint, anonymous
        self.bucket, _, self.prefix = location.base.removeprefix("s3://").partition("/")
        self._made: Any = None
        try:
            import boto3  # noqa: F401  # asked for before a data process is
        except ImportError as error:
            raise SetupError(
                f"{location}: reading from S3 needs boto3; install it with: pip install 'vit-pretrain[s3]'"
            ) from error

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """See ``Transport.get``."""
        return gathered(self._stream(name, start, size, most_bytes), size, self.timeout_s)

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        return paced(self._stream(name, 0, None, most_bytes), self.timeout_s)

    def _stream(self, name: str, start: int, size: int | None, most_bytes: int | None) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from urllib3.exceptions import HTTPError

        wanted = {} if size is None else {"Range": byte_range(start, size)}
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name), **wanted)
            with answer["Body"] as raw:
                yield from bounded(_as_it_comes(raw), most_bytes or LARGEST_ANSWER, self.location.url(name))
        except ClientError as error:
            raise self._judged(error, name, start) from error
        except NoCredentialsError as error:
            raise DataError(
                f"{self.location.url(name)}: no credentials for S3; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or cluster.remote.s3_anonymous: true for a public bucket"
            ) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise TransportError(printable(f"{type(error).__name__}: {error}")[:200]) from error

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: one listing of the prefix, a thousand objects a request."""
        from botocore.exceptions import BotoCoreError, ClientError

        prefix = f"{self.prefix}/" if self.prefix else ""
        found = {}
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                found |= {item["Key"].removeprefix(prefix): int(item["Size"]) for item in page.get("Contents", ())}
        except (BotoCoreError, ClientError):
            return  # listing may be forbidden where reading is not
        yield from ((name, found.get(name)) for name in names)

    @property
    def _client(self) -> Any:
        if self._made is None:
            from boto3.session import Session
            from botocore import UNSIGNED
            from botocore.config import Config

            config = Config(
                connect_timeout=self.timeout_s,
                read_timeout=self.timeout_s,
                retries={"total_max_attempts": 1, "mode": "standard"},  # tried again by Retries, for all transports
                max_pool_connections=16,
                s3={"addressing_style": "path"} if self.endpoint else {},
                **({"signature_version": UNSIGNED} if self.anonymous else {}),
            )
            # a session of its own: boto3's default session is not safe while several threads first use it
            self._made = Session().client("s3", endpoint_url=self.endpoint, config=config)
        return self._made

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _judged(self, error: Any, name: str, start: int) -> Exception:
        code = printable(error.response.get("Error", {}).get("Code", ""))[:80]
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        url = self.location.url(name)
        if code in _NOT_THERE:
            return Missing(f"{url}: not there ({code})", "http_404")
        if code == "NoSuchBucket":
            return Missing(f"{url}: there is no bucket {self.bucket}" + (f" at {self.endpoint}" * bool(self.endpoint)))
        if code in _DENIED:
            return Refused(
                f"{url}: the store does not allow it ({code}); check credentials and bucket policy", "http_403"
            )
        if code == "InvalidRange":
            return DataError(f"{url}: the object ends before byte {start}: truncated, or not the file indexed")
        if status >= 500 or status == 429 or code in _TRY_AGAIN:
            return TransportError(f"HTTP {status} {code}")
        return Refused(f"{url}: the store refused it: {printable(error)[:200]}", f"http_{status}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


def _as_it_comes(raw: Any) -> Iterator[bytes]:
    """An answer's bytes as they arrive: the time limit must be seen between them."""
    while piece := raw.read1(PIECE_BYTES, decode_content=False):
        yield piece
