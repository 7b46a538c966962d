"""Remote files: tars from web servers, S3-compatible stores and commands, and images from a list of URLs."""

from __future__ import annotations

import argparse
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.sources.options import Option
from pretrain.config.schema.cluster import RemoteConfig
from pretrain.data.storage.http_client import HttpClient
from pretrain.data.storage.location import PIPE, Location
from pretrain.data.storage.transport import GaveUp, Refused, Retries, Transport
from pretrain.data.storage.transports import open_transport
from pretrain.errors import ConfigError, DataError, SetupError

OPTIONS = (
    Option("allow_pipe", "let pipe:COMMAND run", default=False, is_flag=True),
    Option("s3_endpoint", "an S3-compatible service other than AWS", default=None, metavar="URL"),
    Option("s3_anonymous", "read public S3 buckets without credentials", default=False, is_flag=True),
)
DOWNLOAD_ATTEMPTS, DOWNLOAD_TIMEOUT_S = 4, 30.0  # of an image; seconds for each 4 MiB
LARGEST_DOWNLOAD = 256 << 20  # bytes of an image file
_TAR_IN_COMMAND = re.compile(r"[^\s/'\"={}]+\.tar(?!\w)")


@dataclass(frozen=True)
class RemoteFiles:
    """Fetches files; pickles without its connections.

    Attributes:
        config: attempts, timeouts, S3 service.
        allow_pipe: whether commands may be run.
    """

    config: RemoteConfig = field(default_factory=RemoteConfig)
    allow_pipe: bool = False
    _opened: dict[Location, Transport] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, args: argparse.Namespace) -> RemoteFiles:
        """Builds it from the values of ``OPTIONS``."""
        return cls(RemoteConfig(s3_endpoint=args.s3_endpoint, s3_anonymous=args.s3_anonymous), args.allow_pipe)

    def check(self, location: Location) -> None:
        """Rejects a location that is not allowed.

        Raises:
            ConfigError: it is a command, and commands are not allowed. SetupError: a package is missing.
        """
        if location.kind == "pipe" and not self.allow_pipe:
            raise ConfigError(f"{location} runs a shell command; if you trust it, add --allow-pipe")
        self._transport(location)

    def fetch(self, location: Location, name: str, path: Path, *, most_bytes: int | None = None) -> None:
        """Fetches a file to ``path``, which is complete if this returns and absent if it raises.

        Args:
            location: of the remote file.
            name: of the remote file.
            path: of the local file.
            most_bytes: maximum length of the response; None: half of the free disk space.

        Raises:
            DataError: it does not exist, or every attempt failed. SetupError: it cannot be written.
        """
        self.check(location)
        transport = self._transport(location)
        most = most_bytes or shutil.disk_usage(path.parent).free // 2

        def attempt() -> None:
            with open(path, "wb") as file:
                for piece in transport.pieces(name, most_bytes=most):
                    file.write(piece)

        try:
            Retries(self.config.attempts).again(attempt)
        except GaveUp as error:
            path.unlink(missing_ok=True)
            raise DataError(f"{location.url(name)} cannot be fetched: {error}; the same command tries again") from error
        except DataError:
            path.unlink(missing_ok=True)
            raise
        except OSError as error:
            path.unlink(missing_ok=True)
            raise SetupError(f"{path} cannot be written: {error.strerror}") from error

    def _transport(self, location: Location) -> Transport:
        if location not in self._opened:
            self._opened[location] = open_transport(location, self.config, allow_pipe=self.allow_pipe)
        return self._opened[location]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


class NotDownloaded(OSError):
    """A file in a list of URLs that could not be downloaded. ``kind`` is one word to count by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Downloads:
    """Fetches single files by their URLs; pickles without its connections."""

    client: HttpClient = field(default_factory=lambda: HttpClient(DOWNLOAD_TIMEOUT_S))

    def read(self, url: str) -> bytes:
        """The content of a URL, requested up to ``DOWNLOAD_ATTEMPTS`` times with increasing pauses.

        Raises:
            NotDownloaded: it does not exist, is not allowed or too long, or every attempt failed.
        """

        def attempt() -> bytes:
            return b"".join(self.client.pieces(url, most_bytes=LARGEST_DOWNLOAD))

        try:
            return Retries(DOWNLOAD_ATTEMPTS).again(attempt)
        except GaveUp as error:
            raise NotDownloaded("unreachable", str(error)) from error
        except Refused as error:
            raise NotDownloaded(error.kind, str(error)) from error
        except DataError as error:
            raise NotDownloaded("bad_url", str(error)) from error


def place_of(url: str) -> tuple[Location, str]:
    """The location of the tar of a URL, and its name there.

    A command belongs to one shard, in webdataset's notation: ``pipe:ssh store cat /data/train-0001.tar``.

    Raises:
        ConfigError: an unknown kind of location, or a command that names no tar.
    """
    if url.startswith(PIPE):
        command = url.removeprefix(PIPE)
        found = list(_TAR_IN_COMMAND.finditer(command))
        if not found:
            raise ConfigError(f"{url} names no .tar; write the command that prints one shard, or its names as {{0..9}}")
        start, end = found[-1].span()
        return Location.parse(f"{PIPE}{command[:start]}{{name}}{command[end:]}"), command[start:end]
    return Location.of_file(url)
