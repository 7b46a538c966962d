"""The chunks of a PNG file: which of them make the picture.

Source: PNG specification, third edition, sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LOOK = frozenset([b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"])  # how the picture is to be seen
PICTURE = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
GREY = 0  # colour type
_DEPTH, _COLOUR_TYPE = 24, 25  # places in the file: IHDR comes first


class Chunk(NamedTuple):
    """A chunk's kind, and the file's bytes that it takes, its length and checksum with it."""

    kind: bytes
    start: int
    end: int


def chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk up to and with the end; one that is cut off has an ``end`` beyond the file's."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start, place = place, place + 12 + length
        yield Chunk(kind, start, place)
        if kind == b"IEND":
            return


def picture(data: bytes, also: frozenset[bytes] = frozenset()) -> bytes | None:
    """The file without everything that does not make its picture, of an animation the first one; None: it is cut off.

    Args:
        data: the file.
        also: kinds that are kept besides, where their checksum is right.
    """
    kept = [SIGNATURE]
    for kind, start, end in chunks(data):
        if end > len(data):
            return None
        is_sound = data[end - 4 : end] == zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
        if kind in PICTURE or (kind in also and is_sound):
            kept.append(data[start:end])
        if kind == b"IEND":
            return b"".join(kept)
    return None


def has_16_bits(data: bytes) -> bool:
    """It is a PNG with 16 bits a channel."""
    return data.startswith(SIGNATURE) and len(data) > _DEPTH and data[_DEPTH] == 16


def grey_depth(data: bytes) -> int | None:
    """Bits of a pixel of a grey PNG without alpha; None: it is something else."""
    if not data.startswith(SIGNATURE) or len(data) <= _COLOUR_TYPE or data[_COLOUR_TYPE] != GREY:
        return None
    return data[_DEPTH]
