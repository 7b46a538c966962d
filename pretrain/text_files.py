"""Text files written by other programs: byte-order marks and encodings. Any module may import this one."""

from __future__ import annotations

import codecs
from pathlib import Path

from pretrain.errors import ConfigError, DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UTF8 = "utf-8"


def known_encoding(name: str) -> str:
    """Returns the name if it is a text encoding that Python knows.

    Raises:
        ConfigError: it is not.
    """
    try:
        is_text = isinstance("".encode(name), bytes)
    except (LookupError, UnicodeError, ValueError):
        is_text = False
    if not is_text:
        raise ConfigError(f"--encoding {name!r} is not a known text encoding; such as utf-8, cp949, latin-1 or utf-16")
    return name


def decode_text(data: bytes, where: str, encoding: str = UTF8, remedy: str = "") -> str:
    """Decodes text and removes its byte-order mark, which determines the encoding if there is one.

    Args:
        data: the bytes.
        where: where they come from, for messages.
        encoding: of text without a mark.
        remedy: how the user can choose another encoding; "": advise saving it as UTF-8.

    Raises:
        DataError: the bytes are not text in that encoding.
    """
    mark, named = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", encoding))
    try:
        return data[len(mark) :].decode(named)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[len(mark) + error.start] if len(mark) + error.start < len(data) else data[-1]
        raise DataError(
            f"{where}:{line}: not {named.upper()} text (byte 0x{byte:02x}); {remedy or 'save it as UTF-8'}"
        ) from error


def encoding_of(path: Path, encoding: str = UTF8) -> str:
    """The encoding to open a file with: that of its byte-order mark, otherwise ``encoding``.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    named = next((name for mark, name in _MARKS if head.startswith(mark)), "")
    if not named:
        return encoding
    return "utf-8-sig" if named == UTF8 else named.rpartition("-")[0]  # utf-16 and utf-32 strip their mark


def read_text(path: Path, encoding: str = UTF8, remedy: str = "") -> str:
    """The text of a file; see ``decode_text``.

    Raises:
        DataError: the file cannot be read, or is not text in that encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return decode_text(data, str(path), encoding, remedy)
