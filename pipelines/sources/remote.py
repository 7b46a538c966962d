"""Tars that lie elsewhere, fetched whole: from web servers, S3-compatible stores and commands, as the stream does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.config.schema.storage import RemoteConfig
from pretrain.data.location import PIPE, Location
from pretrain.data.transport import Retries, Transport, TransportError, open_transport
from pretrain.errors import ConfigError, DataError

OPTIONS: dict[str, Any] = {"allow_pipe": False, "s3_endpoint": None, "s3_anonymous": False}  # and their defaults
_TAR_IN_COMMAND = re.compile(r"[^\s/'\"={}]+\.tar(?!\w)")


@dataclass(frozen=True)
class RemoteFiles:
    """Fetches files; pickles without its connections.

    Attributes:
        config: how often, how long, which S3 service.
        allow_pipe: commands may be run.
    """

    config: RemoteConfig = field(default_factory=RemoteConfig)
    allow_pipe: bool = False
    _opened: dict[Location, Transport] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, args: argparse.Namespace) -> RemoteFiles:
        """From the options that ``add_options`` declared."""
        return cls(RemoteConfig(s3_endpoint=args.s3_endpoint, s3_anonymous=args.s3_anonymous), args.allow_pipe)

    def check(self, location: Location) -> None:
        """Refuses a place that is not allowed.

        Raises:
            ConfigError: a command, and nobody said that commands may run. SetupError: a package is missing.
        """
        if location.kind == "pipe" and not self.allow_pipe:
            raise ConfigError(f"{location} runs a shell command; if you trust it, add --allow-pipe")
        self._transport(location)

    def fetch(self, location: Location, name: str, path: Path) -> None:
        """Writes a file to ``path``, which is complete when this returns.

        Raises:
            DataError: it is not there, or no try brought it whole.
        """
        self.check(location)
        transport, retries, attempt = self._transport(location), Retries(self.config.attempts), 1
        while True:
            try:
                with open(path, "wb") as file:
                    for piece in transport.pieces(name):
                        file.write(piece)
                return
            except TransportError as error:
                if attempt >= retries.attempts:
                    raise DataError(
                        f"{location.url(name)} cannot be fetched: {attempt} attempts failed, the last with: {error}; "
                        "the same command tries again"
                    ) from error
                retries.pause(attempt, error)
                attempt += 1

    def _transport(self, location: Location) -> Transport:
        if location not in self._opened:
            self._opened[location] = open_transport(location, self.config, allow_pipe=self.allow_pipe)
        return self._opened[location]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def add_options(add: Callable[..., Any]) -> None:
    """Declares what decides how remote files are fetched."""
    add("--allow-pipe", action="store_true", help="let pipe:COMMAND run")
    add("--s3-endpoint", metavar="URL", help="an S3-compatible service other than AWS")
    add("--s3-anonymous", action="store_true", help="read public S3 buckets without credentials")


def place_of(url: str) -> tuple[Location, str]:
    """Where the tar of a URL lies, and its name there.

    A command is that of one shard, as webdataset writes it: ``pipe:ssh store cat /data/train-0001.tar``.

    Raises:
        ConfigError: no known place, or a command that names no tar.
    """
    if url.startswith(PIPE):
        command = url.removeprefix(PIPE)
        found = list(_TAR_IN_COMMAND.finditer(command))
        if not found:
            raise ConfigError(f"{url} names no .tar; write the command that prints one shard, or its names as {{0..9}}")
        start, end = found[-1].span()
        return Location.parse(f"{PIPE}{command[:start]}{{name}}{command[end:]}"), command[start:end]
    whole = Location.parse(url)
    address, mark, query = whole.base.partition("?")
    folder, _, name = address.rpartition("/")
    return Location(whole.kind, folder + mark + query), name
