"""The file structure of JPEG (segments) and PNG (chunks): locates the metadata and the bytes of the picture.

Nothing here decodes pixels. The packer uses it to strip metadata without changing the picture, and readers use it to
get orientation and colour profile before they decode.

Source: JPEG, ITU-T T.81, annex B; Exif 2.32, section 4.7.2; XMP specification, part 3, section 1.1.3; ICC.1:2022,
annex B.4. PNG, third edition, sections 5 and 11. AVIF, ISO/IEC 14496-12, section 12.1.5 (colr).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

JPEG_START = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
START_OF_SCAN = 0xDA

_END, _APP1, _APP2, _RESTART_INTERVAL = 0xD9, 0xE1, 0xE2, 0xDD
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15, except three that are tables
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_SCAN = bytes([0xFF, START_OF_SCAN])
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # a marker that has a length, or the end marker
_EXIF, _XMP, _ICC = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00", b"ICC_PROFILE\x00"

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_APPEARANCE = frozenset([b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"])  # colour space and orientation
_PNG_PICTURE = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_PNG_GREY = 0  # colour type
_PNG_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # offsets in the file: IHDR always comes first


class Segment(NamedTuple):
    """A JPEG marker with its data: the file's bytes from ``start`` (of the marker) to ``end``."""

    marker: int
    start: int
    end: int


class JpegHeader(NamedTuple):
    """The metadata before a JPEG's first scan; b"" or 0 where there is none.

    Attributes:
        exif: the TIFF structure of its Exif segments.
        xmp: its XMP packet.
        profile: its ICC profile.
        channels: colour components of the frame.
        num_scans: an upper bound on the scans of a progressive file; 1 for other files.
    """

    exif: bytes
    xmp: bytes
    profile: bytes
    channels: int
    num_scans: int


class JpegCoding(NamedTuple):
    """How a JPEG's pixels are coded.

    Attributes:
        is_progressive: in several scans, each of which refines the complete picture.
        restart_interval: blocks of pixels (MCUs) between two restart markers; 0: it has none.
    """

    is_progressive: bool
    restart_interval: int


class CodePoints(NamedTuple):
    """Colours as ITU-T H.273 code points, which replace a profile.

    Attributes:
        primaries: ColourPrimaries.
        transfer: TransferCharacteristics.
        is_full_range_rgb: whether decoded pixels are full-range RGB, so that only the two code points matter.
    """

    primaries: int
    transfer: int
    is_full_range_rgb: bool


class Chunk(NamedTuple):
    """A PNG chunk: its kind, and the bytes it occupies in the file, including its length and checksum."""

    kind: bytes
    start: int
    end: int


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """Every segment of the first picture, up to and including its end marker; fill bytes and coded data are skipped.

    If the file is cut off inside a segment, that segment is the last one, and its ``end`` is beyond the file's end.
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


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Orientation, colour profile and number of scans of a JPEG, from the segments before its first scan."""
    exif, xmp, pieces, channels, num_scans = b"", b"", [], 0, 1
    for marker, start, end in jpeg_segments(data):
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
            # The two bytes may also occur inside other segments, so this is an upper bound.
            num_scans = data.count(_SCAN) if marker in _PROGRESSIVE else 1
    return JpegHeader(exif, xmp, _joined_profile(pieces), channels, num_scans)


def read_jpeg_coding(data: bytes) -> JpegCoding:
    """How a JPEG's pixels are coded, from the segments before its first scan."""
    is_progressive, interval = False, 0
    for marker, start, end in jpeg_segments(data):
        if marker == START_OF_SCAN:
            break
        if marker in _FRAMES:
            is_progressive = marker in _PROGRESSIVE
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[start + 4 : end], "big")
    return JpegCoding(is_progressive, interval)


def _joined_profile(pieces: list[bytes]) -> bytes:
    """Each piece begins with its number and the number of pieces; an incomplete profile counts as absent."""
    pieces = sorted(piece for piece in pieces if len(piece) > 2)
    if not pieces or [piece[0] for piece in pieces] != list(range(1, pieces[0][1] + 1)):
        return b""
    return b"".join(piece[2:] for piece in pieces)


def end_of_jpeg(data: bytes) -> int | None:
    """The offset just after the first picture's end marker; None if the file was cut off before it."""
    for marker, _, end in jpeg_segments(data):
        if marker == _END:
            return end
    return None


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk up to IEND; if the file is cut off inside a chunk, its ``end`` is beyond the end of the file."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start, place = place, place + 12 + length
        yield Chunk(kind, start, place)
        if kind == b"IEND":
            return


def png_picture(data: bytes, also: frozenset[bytes] = frozenset()) -> bytes | None:
    """The file reduced to the chunks of its picture (of an animation, the first); None if it is cut off.

    Args:
        data: the file.
        also: kinds of chunks to keep as well, if their checksum is correct.
    """
    kept = [PNG_SIGNATURE]
    for kind, start, end in png_chunks(data):
        if end > len(data):
            return None
        is_sound = data[end - 4 : end] == zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
        if kind in _PNG_PICTURE or (kind in also and is_sound):
            kept.append(data[start:end])
        if kind == b"IEND":
            return b"".join(kept)
    return None


def is_16_bit_png(data: bytes) -> bool:
    """Whether it is a PNG with 16 bits per channel."""
    return data.startswith(PNG_SIGNATURE) and len(data) > _PNG_DEPTH and data[_PNG_DEPTH] == 16


def grey_png_depth(data: bytes) -> int | None:
    """Bits per pixel of a grey PNG without alpha; None for anything else."""
    if not data.startswith(PNG_SIGNATURE) or len(data) <= _PNG_COLOUR_TYPE or data[_PNG_COLOUR_TYPE] != _PNG_GREY:
        return None
    return data[_PNG_DEPTH]


def code_points(data: bytes) -> CodePoints | None:
    """The colour code points in the cICP chunk of a PNG or the nclx box of an AVIF; None if there are none."""
    if data.startswith(PNG_SIGNATURE):
        for kind, start, end in png_chunks(data):
            if kind == b"IDAT" or end > len(data):
                return None
            body = data[start + 8 : end - 4]
            is_sound = data[end - 4 : end] == zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big")
            if kind == b"cICP" and len(body) == 4 and is_sound:
                return CodePoints(body[0], body[1], (body[2], body[3]) == (0, 1))
    if data[4:8] == b"ftyp":
        place = data.find(b"colrnclx", 0, data.find(b"mdat"))
        if 0 <= place <= len(data) - 15:  # the decoder handles matrix and range itself
            return CodePoints(*struct.unpack_from(">HH", data, place + 8), True)
    return None
