"""Web addresses: what is sent to a server, and what is refused.

An address may be written as people write it, with spaces and letters of any script. What is already percent-encoded
is not encoded again, in the path and in the query, which may hold a signature.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from pretrain.errors import DataError
from pretrain.redaction import redacted

_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SENT_AS_IT_IS = "%!$&'()*+,/:;=@~"  # in a path; letters, digits and _.- always are


class Request(NamedTuple):
    """What is asked for: the address without its credentials, and the value of an Authorization header or ""."""

    url: str
    authorization: str


def is_web_address(text: str) -> bool:
    """Whether a text is an http or https address."""
    return text[:8].lower().startswith(("http://", "https://"))


def request_for(address: str) -> Request:
    """The request that an address means.

    Raises:
        DataError: it names no host or port, has control characters in it, or a ``#``.
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
    except ValueError:  # its text may hold a part of a password
        raise DataError(f"{redacted(address)}: not a web address: its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or not host:
        raise DataError(f"{redacted(address)}: names no host; write http://HOST/… or https://HOST/…")
    place = f"[{host}]" if ":" in host else _ascii_host(host, address)
    netloc = place if port is None else f"{place}:{port}"
    path = encoded(parts.path, _SENT_AS_IT_IS) or "/"
    query = encoded(parts.query, _SENT_AS_IT_IS + '?[]{}|^`\\"<>')
    return Request(urlunsplit((parts.scheme, netloc, path, query, "")), _basic(parts))


def encoded(text: str, safe: str) -> str:
    """Percent-encodes what may not be sent as it is; escapes that are there stay.

    Bytes that are not UTF-8 (as ``surrogateescape`` reads them) are encoded as those bytes.
    """
    return quote(_STRAY_PERCENT.sub("%25", text), safe=safe, encoding="utf-8", errors="surrogateescape")


def encoded_name(name: str) -> str:
    """A file's name as a part of a path; a ``%`` in it is a percent sign."""
    return quote(name, safe="", encoding="utf-8", errors="surrogateescape")


def decoded_name(name: str) -> str:
    """The file's name that a part of a path means."""
    return unquote(name, encoding="utf-8", errors="surrogateescape")


def path_in(address: str) -> str:
    """The path of an address, as names: without host and query, decoded."""
    rest = address.partition("://")[2].partition("?")[0].partition("#")[0]
    return decoded_name(rest[len(rest.partition("/")[0]) :])


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses are of one scheme, host and port: only then may they get the same credentials."""
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
