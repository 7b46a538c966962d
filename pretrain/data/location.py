"""Where a set lies: in a folder, on a web server, in an S3-compatible store, or behind a command that prints files.

    /data/train  or  file:///data/train       a folder
    https://host/path                         a web server that answers Range requests
    s3://bucket/prefix                        an S3-compatible store
    pipe:ssh store cat /data/train/{name}     a command (off unless data.allow_pipe); {start} and {end}, the first and
                                              last byte, make it print a range

Each may also name the index itself: https://host/path/index.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pretrain.data.index import TABLE_FILE
from pretrain.errors import ConfigError

PIPE = "pipe:"


@dataclass(frozen=True)
class Location:
    """A place that holds the files of one split. ``base`` is a folder, a URL or a command."""

    kind: Literal["folder", "http", "s3", "pipe"]
    base: str

    @property
    def is_remote(self) -> bool:
        """Whether it is read through the node's cache."""
        return self.kind != "folder"

    def url(self, name: str) -> str:
        """The full name of one of its files, for requests and messages."""
        if self.kind == "pipe":
            return f"{PIPE}{self.base.replace('{name}', name)}"
        if self.kind == "http":
            scheme, host, path, query, _ = urlsplit(self.base)
            return urlunsplit((scheme, host, f"{path.rstrip('/')}/{quote(name)}", query, ""))
        return f"{self.base.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return f"{PIPE}{self.base}" if self.kind == "pipe" else self.base

    @classmethod
    def parse(cls, text: str) -> Location:
        """Reads what stands in ``data.shards``.

        Raises:
            ConfigError: an unknown scheme, or a command that names no file.
        """
        if text.startswith(PIPE):
            return cls("pipe", _command(text.removeprefix(PIPE).strip()))
        scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", text)
        if scheme is None:
            return cls("folder", _without_index(text))
        parts = urlsplit(text)
        if scheme[1] == "file":
            return cls("folder", _without_index(unquote(parts.path)))
        if scheme[1] not in ("http", "https", "s3"):
            raise ConfigError(
                f"data.shards: {text}: {scheme[1]}:// is not known; a set may lie in a folder, or at http://, "
                "https:// or s3://, or behind pipe:COMMAND"
            )
        if not parts.netloc:
            raise ConfigError(f"data.shards: {text} names no {'bucket' if scheme[1] == 's3' else 'host'}")
        path = _without_index(parts.path)
        kind = "s3" if scheme[1] == "s3" else "http"
        return cls(kind, urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")))


def _without_index(path: str) -> str:
    stripped = path.removesuffix(TABLE_FILE) if path.endswith(f"/{TABLE_FILE}") else path
    return stripped.rstrip("/") or ("/" if path.startswith("/") and not stripped.strip("/") else "")


def _command(command: str) -> str:
    if "{name}" not in command:
        raise ConfigError(
            f"data.shards: {PIPE}{command} must say where the file's name belongs: write {{name}} in the command, "
            "such as pipe:ssh store cat /data/{name}"
        )
    if ("{start}" in command) != ("{end}" in command):
        raise ConfigError(f"data.shards: {PIPE}{command}: {{start}} and {{end}} belong together")
    return command
