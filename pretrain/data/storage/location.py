"""The location of a set: a folder, a web server, an object store, or a command that prints files.

    /data/train  or  file:///data/train       a folder
    https://host/path                         a web server that answers Range requests
    s3://bucket/prefix                        an S3-compatible store; also gs:// (Google Cloud) and az:// (Azure)
    pipe:ssh store cat /data/train/{name}     a command (off unless data.allow_pipe); {start} and {end}, the first and
                                              last byte, make it print a range

Each may also name the index itself: https://host/path/index.json. Paths and keys of object stores are used verbatim; in
a file: URL, escapes such as %20 are decoded, and # and ? belong to the path.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from pretrain.config.object_stores import bucket_and_key
from pretrain.data.storage.index import TABLE_FILE
from pretrain.errors import ConfigError, DataError
from pretrain.redaction import is_redacted, redacted

PIPE = "pipe:"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_FILE = re.compile(r"file:(?://([^/]*))?(/.*)", re.IGNORECASE | re.DOTALL)
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SENT_AS_IT_IS = "%!$&'()*+,/:;=@~"  # in a path, besides letters, digits and _.-


@dataclass(frozen=True)
class Location:
    """A place that holds the files of one split. ``base`` is a folder, a URL or a command."""

    kind: Literal["folder", "http", "s3", "gs", "az", "pipe"]
    base: str

    @property
    def is_remote(self) -> bool:
        """Whether the set is read through the node's cache."""
        return self.kind != "folder"

    def address(self, name: str) -> str:
        """The full address of one of its files, for requests. It may contain credentials, so never print it."""
        if self.kind == "pipe":
            return f"{PIPE}{self.base.replace('{name}', name)}"
        if self.kind == "http":
            path, question, query = self.base.partition("?")
            return f"{path.rstrip('/')}/{encoded_name(name)}{question}{query}"
        return f"{self.base.rstrip('/')}/{name}"

    def url(self, name: str) -> str:
        """The full name of one of its files, for messages: without credentials."""
        return redacted(self.address(name)) if self.kind in ("http", "pipe") else self.address(name)

    def __str__(self) -> str:
        return redacted(f"{PIPE}{self.base}" if self.kind == "pipe" else self.base)

    @classmethod
    def parse(cls, text: str) -> Location:
        """Parses a value of ``data.shards``.

        Raises:
            ConfigError: the scheme is unknown, the address is invalid, or the command names no file.
        """
        if is_redacted(text) and (text.startswith(PIPE) or "://" in text):
            raise ConfigError(
                f"data.shards: {text} lacks its credentials, which are left out of everything that is written down: "
                "give the place again, as in the run's own command"
            )
        if text.startswith(PIPE):
            return cls("pipe", _command(text.removeprefix(PIPE).strip()))
        if file := _FILE.fullmatch(text):
            return cls("folder", _without_index(_path_of(text, file[1] or "", file[2])))
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls("folder", _without_index(text))
        rest = text[scheme.end() :]
        match scheme[1].lower():
            case "s3" | "gs" | "az" as known:
                return cls(known, f"{known}://{_without_index(_bucket_and_key(known, rest))}")
            case "http" | "https" as known:
                return cls("http", _web(f"{known}://{rest}"))
            case _:
                raise ConfigError(
                    f"data.shards: {redacted(text)}: {scheme[1]}:// is not known; a set may be in a folder, or at "
                    "http://, https://, s3://, gs:// or az://, or behind pipe:COMMAND"
                )

    @classmethod
    def of_file(cls, text: str) -> tuple[Location, str]:
        """The location that contains the file of an http or object store's address, and the file's name.

        Raises:
            ConfigError: as ``parse``, or the address names no file.
        """
        place = cls.parse(text)
        address, question, query = place.base.partition("?") if place.kind == "http" else (place.base, "", "")
        folder, slash, name = address.rpartition("/")
        if not slash or not name or folder.endswith(":/"):
            raise ConfigError(f"{place} names no file")
        return cls(place.kind, f"{folder}{question}{query}"), decoded_name(name) if place.kind == "http" else name


def _web(text: str) -> str:
    try:
        request_for(text)
    except DataError as error:
        raise ConfigError(f"data.shards: {error}") from error
    path, question, query = text.partition("?")
    return f"{_without_index(path)}{question}{query}"


def _bucket_and_key(scheme: str, rest: str) -> str:
    try:
        return bucket_and_key(scheme, rest)
    except ValueError as error:
        raise ConfigError(f"data.shards: {error}") from error


def _path_of(text: str, host: str, path: str) -> str:
    """The path of a file: URL. An existing folder with the unescaped name shows that its escapes are literal."""
    if host.lower() not in ("", "localhost"):
        raise ConfigError(f"data.shards: {text} names the host {host}; write file:///{host}{path} for a folder here")
    decoded = decoded_name(path)
    if decoded == path or not os.path.exists(path):
        return decoded
    if not os.path.exists(decoded):
        return path
    raise ConfigError(
        f"data.shards: {text} may mean {decoded} or {path}, and both exist; name the folder without file://"
    )


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


class Request(NamedTuple):
    """An address without its credentials, and the value of the Authorization header or ""."""

    url: str
    authorization: str


def is_web_address(text: str) -> bool:
    """Whether a text is an http or https address."""
    return text[:8].lower().startswith(("http://", "https://"))


def request_for(address: str) -> Request:
    """The request for an address.

    Raises:
        DataError: it has no valid host or port, or contains control characters or a ``#``.
    """
    if _CONTROL.search(address):
        raise DataError(f"{redacted(address)}: a web address cannot have control characters in it")
    if "#" in address:
        raise DataError(
            f"{redacted(address)}: what follows a # is never sent to a server; write %23 where it belongs to the name, "
            "or leave the part out"
        )
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may contain part of a password
        raise DataError(f"{redacted(address)}: not a web address: its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or not host:
        raise DataError(f"{redacted(address)}: names no host; write http://HOST/… or https://HOST/…")
    place = f"[{host}]" if ":" in host else _ascii_host(host, address)
    netloc = place if port is None else f"{place}:{port}"
    path = encoded(parts.path, _SENT_AS_IT_IS) or "/"
    query = encoded(parts.query, _SENT_AS_IT_IS + '?[]{}|^`\\"<>')
    return Request(urlunsplit((parts.scheme, netloc, path, query, "")), _basic(parts))


def encoded(text: str, safe: str) -> str:
    """Percent-encodes characters that may not be sent as they are; existing escapes are kept.

    Bytes that are not UTF-8 (decoded with ``surrogateescape``) are encoded as those bytes.
    """
    return quote(_STRAY_PERCENT.sub("%25", text), safe=safe, encoding="utf-8", errors="surrogateescape")


def encoded_name(name: str) -> str:
    """A file's name, encoded for a path; a ``%`` in it is a literal percent sign."""
    return quote(name, safe="", encoding="utf-8", errors="surrogateescape")


def decoded_name(name: str) -> str:
    """The file's name, decoded from a part of a path."""
    return unquote(name, encoding="utf-8", errors="surrogateescape")


def path_in(address: str) -> str:
    """The decoded path of an address, without host and query."""
    rest = address.partition("://")[2].partition("?")[0].partition("#")[0]
    return decoded_name(rest[len(rest.partition("/")[0]) :])


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses have the same scheme, host and port, and so may get the same credentials."""
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _basic(parts: SplitResult) -> str:
    if parts.username is None and parts.password is None:
        return ""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _ascii_host(host: str, address: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise DataError(f"{redacted(address)}: {host!r} is not a host's name ({error})") from error
