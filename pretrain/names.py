r"""Names of files, tar members and classes: read from any bytes, and printed so that people and programs can read them.

A name is a string as Python's file functions return it: UTF-8, where a byte that is not UTF-8 becomes a lone surrogate.
Such a string cannot be written to a terminal, a CSV or a JSON file, and a name may hold a line break or a terminal's
escape sequence. So all output contains ``shown(name)`` instead, which ``parsed`` turns back into the name:

    caf<byte e9>.jpg  →  caf\xe9.jpg      two<line break>lines.jpg  →  two\x0alines.jpg      고양이.jpg  →  고양이.jpg

Text that is not a name (an error, a line of a report, a class name from a file) goes through ``printable``, which
escapes the same characters and leaves everything else unchanged, so applying it twice is safe. ``tell`` prints it.

The columns of a record file keep the bytes of a name as they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import PurePath
from typing import IO, Any

from pretrain.redaction import redacted

# control characters, lone surrogates, line breaks, and marks that change the text direction
_UNPRINTABLE = "\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
_NOT_SHOWN = re.compile(rf"[{_UNPRINTABLE}]|\\(?=x[0-9a-f]{{2}}|u[0-9a-f]{{4}})")  # or what ``parsed`` would replace
_NOT_PRINTABLE = re.compile(rf"(?![\n\t])[{_UNPRINTABLE}]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))")
_RAW_BYTES = range(0xDC80, 0xDD00)  # the surrogates that encode bytes


def from_bytes(data: bytes) -> str:
    """Decodes a name; bytes that are not UTF-8 become surrogates."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """The bytes of a name, for files and hashes. A surrogate that encodes no byte is written as its three bytes."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"".join(
            char.encode("utf-8", "surrogateescape" if ord(char) in _RAW_BYTES else "surrogatepass") for char in name
        )


def shown(name: str | PurePath) -> str:
    """A name as one line of plain text, for people and programs; ``parsed`` is the inverse."""
    return _NOT_SHOWN.sub(_escaped, str(name))


def parsed(text: str) -> str:
    """The name that ``shown`` wrote."""
    return _ESCAPE.sub(_unescaped, text)


def printable(text: object) -> str:
    """Escapes everything that a terminal would interpret or could not print, except line breaks and tabs."""
    return _NOT_PRINTABLE.sub(_escaped, str(text))


def printable_in(value: Any) -> Any:
    """Applies ``printable`` to every string, including keys, in nested dicts and lists."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_in(key): printable_in(inner) for key, inner in value.items()}
    return [printable_in(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def tell(*parts: object, end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Prints ``printable`` text without secrets, even if the terminal's encoding lacks some of its characters."""
    stream: Any = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = " ".join(printable(redacted(str(part))) for part in parts)
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in _RAW_BYTES:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def _unescaped(match: re.Match[str]) -> str:
    if match[2] is not None:
        return chr(int(match[2], 16))
    code = int(match[1], 16)
    return chr(code if code < 0x80 else 0xDC00 + code)
