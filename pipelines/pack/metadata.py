"""Removes everything but the picture from image files, without touching its pixels.

Each function returns the file without it, or None for a file that it cannot take apart.

Source: JPEG: ITU-T T.81, annex B; PNG: third edition, section 5; WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pretrain.data.images.containers import JPEG_END, JPEG_START, START_OF_SCAN, end_of_jpeg, jpeg_segments, png_picture

_APP0, _APP14, _APP15, _COMMENT = 0xE0, 0xEE, 0xEF, 0xFE
_WEBP_PIXELS = frozenset([b"VP8 ", b"VP8L"])
_ANIMATION_FRAME, _FRAME_HEADER = b"ANMF", 16


def strip_jpeg(data: bytes) -> bytes | None:
    """The first picture without comments and APP segments, except JFIF's and Adobe's, which define the colour coding.

    Anything after its end marker is also removed: further pictures, a video, padding.
    """
    kept, place = [data[:2]], None
    for marker, start, end in jpeg_segments(data):
        if end > len(data):
            return None
        if place is not None:  # coded data, and tables between two scans
            continue
        if marker == START_OF_SCAN:
            place = start
        elif _makes_picture(marker, data[start + 4 : end]):
            kept.append(data[start:end])
    if place is None:
        return None
    end_of_picture = end_of_jpeg(data)
    tail = [data[place:], JPEG_END] if end_of_picture is None else [data[place:end_of_picture]]
    return b"".join([*kept, *tail])


def _makes_picture(marker: int, body: bytes) -> bool:
    if marker == _APP0:
        return body.startswith(b"JFIF")
    if marker == _APP14:
        return body.startswith(b"Adobe")
    return not (_APP0 <= marker <= _APP15 or marker == _COMMENT)


def has_trailing_bytes(data: bytes) -> bool:
    """Whether data follow the end of a JPEG's first picture, such as a phone's video; zeros are padding."""
    end = end_of_jpeg(data) if data.startswith(JPEG_START) else None
    return end is not None and bool(data[end:].strip(b"\0"))


def strip_webp(data: bytes) -> bytes | None:
    """Only the chunk with the picture; None for one with an alpha channel or an animation."""
    for kind, start, end in _webp_chunks(data, 12):
        if kind in _WEBP_PIXELS:
            chunk = data[start:end]
            return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk if end <= len(data) + 1 else None
        if kind in (b"ALPH", b"ANIM", _ANIMATION_FRAME):
            return None
    return None


def is_lossless_webp(data: bytes) -> bool:
    """The first picture of a WebP is coded without losses."""
    for kind, start, _ in _webp_chunks(data, 12):
        if kind == _ANIMATION_FRAME:
            inner = _webp_chunks(data, start + 8 + _FRAME_HEADER)
            return next((kind for kind, _, _ in inner if kind in _WEBP_PIXELS), b"") == b"VP8L"
        if kind in _WEBP_PIXELS:
            return kind == b"VP8L"
    return False


def _webp_chunks(data: bytes, place: int) -> Iterator[tuple[bytes, int, int]]:
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        start, place = place, place + 8 + length + length % 2
        yield kind, start, place


STRIPPERS: dict[str, Callable[[bytes], bytes | None]] = {
    "JPEG": strip_jpeg,
    "PNG": png_picture,
    "WEBP": strip_webp,
}
