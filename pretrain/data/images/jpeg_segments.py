"""The segments of a JPEG file: where metadata is, and where the picture ends.

Source: ITU-T T.81, annex B; Exif 2.32, section 4.7.2; XMP specification, part 3, section 1.1.3; ICC.1:2022, annex B.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

START = b"\xff\xd8\xff"
END_MARKER = b"\xff\xd9"
START_OF_SCAN = 0xDA

_END, _APP1, _APP2 = 0xD9, 0xE1, 0xE2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15; those three are tables
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_SCAN = bytes([0xFF, START_OF_SCAN])
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # with a length behind it, or the end
_EXIF, _XMP, _ICC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00", b"ICC_PROFILE\x00"


class Segment(NamedTuple):
    """A marker and what belongs to it: the file's bytes from ``start`` (of the marker) to ``end``."""

    marker: int
    start: int
    end: int


class Header(NamedTuple):
    """The metadata before a JPEG's first scan; b"" or 0 where there is none.

    Attributes:
        exif: the TIFF structure of its Exif segments.
        xmp: its XMP packet.
        profile: its ICC profile.
        channels: colour components of the frame.
        num_scans: at most as many as the file has; 1 unless it is progressive.
    """

    exif: bytes
    xmp: bytes
    profile: bytes
    channels: int
    num_scans: int


def segments(data: bytes) -> Iterator[Segment]:
    """Every segment of the first picture, up to and with its end marker; fill bytes and coded data are stepped over.

    A segment that is cut off is the last one; its ``end`` is then beyond the file's.
    """
    place = 2
    while (found := _MARKER.search(data, place)) is not None:
        start, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            yield Segment(marker, start, start + 2)
            return
        if start + 4 > len(data):
            return
        place = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield Segment(marker, start, place)


def read_header(data: bytes) -> Header:
    """The metadata that decides how the pixels of a JPEG are to be seen."""
    exif, xmp, pieces, channels, num_scans = b"", b"", [], 0, 1
    for marker, start, end in segments(data):
        if marker == START_OF_SCAN:
            break
        if marker == _APP1:
            body = data[start + 4 : end]
            if body.startswith(_EXIF):
                exif += body[len(_EXIF) :]
            elif body.startswith(_XMP):
                xmp = body[len(_XMP) :]
        elif marker == _APP2 and data.startswith(_ICC, start + 4):
            pieces.append(data[start + 4 + len(_ICC) : end])
        elif marker in _FRAMES and start + 9 < len(data):
            channels = data[start + 9]
            num_scans = data.count(_SCAN) if marker in _PROGRESSIVE else 1
    return Header(exif, xmp, _profile(pieces), channels, num_scans)


def _profile(pieces: list[bytes]) -> bytes:
    """Pieces begin with their number and with how many there are; an incomplete profile counts as none."""
    pieces = sorted(piece for piece in pieces if len(piece) > 2)
    if not pieces or [piece[0] for piece in pieces] != list(range(1, pieces[0][1] + 1)):
        return b""
    return b"".join(piece[2:] for piece in pieces)


def end_of_picture(data: bytes) -> int | None:
    """The place behind the end marker of the first picture; None: it has none, so the file was cut off."""
    for marker, _, end in segments(data):
        if marker == _END:
            return end
    return None
