"""The transports for remote files: a web server, an S3-compatible store, and the output of a shell command.

Those for other object stores are in ``objects.py``.

Each makes one attempt per request; ``transport.Retries`` repeats it. S3 needs the extra ``s3`` (boto3), which finds
credentials in its usual places. This is the only module of the training that starts programs, and it does so only if
``data.allow_pipe`` is set.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from pretrain import threads
from pretrain.config.object_stores import STORES
from pretrain.config.schema.cluster import RemoteConfig
from pretrain.data.storage.http_client import SIMULTANEOUS, HttpClient
from pretrain.data.storage.index_checks import check_name_for_shell
from pretrain.data.storage.location import Location
from pretrain.data.storage.objects import ObjectTransport
from pretrain.data.storage.transport import (
    LARGEST_ANSWER,
    PIECE_BYTES,
    Missing,
    Refused,
    Transport,
    TransportError,
    as_it_comes,
    bounded,
    byte_range,
    gathered,
    paced,
    too_long,
)
from pretrain.errors import ConfigError, DataError, SetupError
from pretrain.names import printable

_NOT_THERE = frozenset({"404", "NoSuchKey"})
_DENIED = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})
_TRY_AGAIN = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError"})


def open_transport(location: Location, config: RemoteConfig, *, allow_pipe: bool) -> Transport:
    """The transport for a remote location.

    Raises:
        ConfigError: the location is a command, and commands are not allowed. SetupError: a package is missing.
    """
    if location.kind == "http":
        return HttpTransport(location, timeout_s=config.timeout_s)
    if location.kind == "s3":
        return S3Transport(
            location, timeout_s=config.timeout_s, endpoint=config.s3_endpoint, anonymous=config.s3_anonymous
        )
    if location.kind in STORES:
        return ObjectTransport(location, config)
    if not allow_pipe:
        raise ConfigError(
            f"data.shards: {location} runs a shell command on every node, which is off by default; if you trust this "
            "config, set data.allow_pipe: true"
        )
    return PipeTransport(location, timeout_s=config.timeout_s)


class HttpTransport:
    """See ``Transport``. Connections are reused and belong to one process.

    Args:
        location: the URL of the set.
        timeout_s: to connect, and for each 4 MiB.
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
        """See ``Transport.sizes``: sends a HEAD request for each file, several at a time."""
        with threads.pool("sizes", SIMULTANEOUS) as pool:
            found = pool.map(lambda name: self.client.size(self.location.address(name)), names)
            for name, (known, size) in zip(names, found, strict=True):
                if known:
                    yield name, size


class S3Transport:
    """See ``Transport``. The client belongs to one process.

    Args:
        location: s3://bucket/prefix.
        timeout_s: to connect, and for each 4 MiB.
        endpoint: URL of the service; None: AWS, or as set in the usual variables.
        anonymous: send no credentials.

    Raises:
        SetupError: boto3 is not installed.
    """

    ranged = True

    def __init__(self, location: Location, *, timeout_s: float, endpoint: str | None, anonymous: bool) -> None:
        self.location, self.timeout_s, self.endpoint, self.anonymous = location, timeout_s, endpoint, anonymous
        self.bucket, _, self.prefix = location.base.removeprefix("s3://").partition("/")
        self._made: Any = None
        try:
            import boto3  # noqa: F401  # fail here, before a data process is started
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
        most = most_bytes or LARGEST_ANSWER
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._key(name), **wanted)
            with answer["Body"] as raw:
                self._check_length(answer, name, start, size, most)
                yield from bounded(as_it_comes(raw), most, self.location.url(name))
        except ClientError as error:
            raise self._judged(error, name, start) from error
        except NoCredentialsError as error:
            raise DataError(
                f"{self.location.url(name)}: no credentials for S3; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or cluster.remote.s3_anonymous: true for a public bucket"
            ) from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise TransportError(printable(f"{type(error).__name__}: {error}")[:200]) from error

    def _check_length(self, answer: Any, name: str, start: int, size: int | None, most: int) -> None:
        """Compares the stated length with the request, so that a wrong body is not awaited.

        Raises:
            TransportError: a retry may succeed. DataError: it will not.
        """
        url, stated = self.location.url(name), answer.get("ContentLength")
        if stated is None:
            return
        if size is None:
            if stated > most:
                raise too_long(url, most)
            return
        total = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", answer.get("ContentRange", ""), re.ASCII)
        if total and int(total[1]) < start + size:
            raise DataError(
                f"{url}: the object ends at byte {int(total[1]):,}, before byte {start + size:,}: truncated, or not "
                "the file that was indexed"
            )
        if stated > size and answer["ResponseMetadata"]["HTTPStatusCode"] == 200:
            raise DataError(f"{url}: the store ignores Range requests; use one that answers them")
        if stated != size:
            raise TransportError(f"{stated} bytes instead of the {size} that were asked for")

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: lists the prefix, a thousand objects per request."""
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
                retries={"total_max_attempts": 1, "mode": "standard"},  # Retries repeats requests, for all transports
                max_pool_connections=16,
                s3={"addressing_style": "path"} if self.endpoint else {},
                **({"signature_version": UNSIGNED} if self.anonymous else {}),
            )
            # a separate session: boto3's default session is not thread-safe on first use
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
            return DataError(f"{url}: the object ends before byte {start}: truncated, or not the file that was indexed")
        if status >= 500 or status == 429 or code in _TRY_AGAIN:
            return TransportError(f"HTTP {status} {code}")
        return Refused(f"{url}: the store refused it: {printable(error)[:200]}", f"http_{status}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


class PipeTransport:
    """See ``Transport``. A command that fails, stalls or prints too little is retried.

    Args:
        location: the command, with ``{name}`` and optionally ``{start}`` and ``{end}`` in it.
        timeout_s: the longest time without output, and the time for each 4 MiB.
    """

    def __init__(self, location: Location, *, timeout_s: float) -> None:
        self.location, self.timeout_s = location, timeout_s
        self.ranged = "{start}" in location.base

    def get(self, name: str, start: int = 0, size: int | None = None, *, most_bytes: int | None = None) -> bytes:
        """See ``Transport.get``."""
        assert size is None or self.ranged, "this command prints files, not parts of them"
        return gathered(self._pieces(name, start, size, most_bytes), size, self.timeout_s)

    def pieces(self, name: str, *, most_bytes: int | None = None) -> Iterator[bytes]:
        """See ``Transport.pieces``."""
        return paced(self._pieces(name, 0, None, most_bytes), self.timeout_s)

    def sizes(self, names: list[str]) -> Iterator[tuple[str, int | None]]:
        """See ``Transport.sizes``: a command cannot report sizes."""
        return iter(())

    def _pieces(self, name: str, start: int, size: int | None, most_bytes: int | None) -> Iterator[bytes]:
        output = self._run(self._command(name, start, size))
        return bounded(output, size or most_bytes or LARGEST_ANSWER, self.location.url(name))

    def _command(self, name: str, start: int, size: int | None) -> str:
        check_name_for_shell(name, str(self.location))
        end = "" if size is None else str(start + size - 1)
        command = self.location.base.replace("{name}", shlex.quote(name))
        return command.replace("{start}", str(start)).replace("{end}", end)

    def _run(self, command: str) -> Iterator[bytes]:
        bash = shutil.which("bash")  # only bash can report that an earlier command of a pipe failed
        words = [bash, "-o", "pipefail", "-c", command] if bash else ["sh", "-c", command]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
            assert process.stdout is not None
            try:
                yield from self._output(process.stdout)
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired as error:
                raise TransportError(f"the command did not end within {self.timeout_s:g} s") from error
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # the command and its children, which have their own session
                process.stdout.close()
                process.wait()
            if code:
                raise TransportError(f"the command ended with {code}: {_last_line(errors)}")

    def _output(self, file: IO[bytes]) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:  # unlike select, it takes descriptors of any number
            selector.register(file, selectors.EVENT_READ)
            while True:
                if not selector.select(self.timeout_s):
                    raise TransportError(f"the command printed nothing for {self.timeout_s:g} s")
                piece = os.read(file.fileno(), PIECE_BYTES)
                if not piece:
                    return
                yield piece


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1][:200]) if lines else "it printed no error"
