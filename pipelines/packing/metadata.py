"""Takes the metadata out of image files without touching their pixels.

Each function returns the file without it, or None for a file that it cannot take apart.

Source: JPEG: ITU-T T.81, annex B; PNG: third edition, section 5; WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_START_OF_SCAN = 0xDA
_APP0, _APP14, _APP15, _COMMENT = 0xE0, 0xEE, 0xEF, 0xFE
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_WEBP_PIXELS = frozenset([b"VP8 ", b"VP8L"])


def strip_jpeg(data: bytes) -> bytes | None:
    """Without APP segments but JFIF's and Adobe's (which say how colours are coded), and without comments."""
    kept = [data[:2]]
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _START_OF_SCAN:
            return b"".join([*kept, data[place:]])
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if end > len(data):
            return None
        body = data[place + 4 : end]
        is_kept = (
            (marker == _APP0 and body.startswith(b"JFIF"))
            or (marker == _APP14 and body.startswith(b"Adobe"))
            or not (_APP0 <= marker <= _APP15 or marker == _COMMENT)
        )
        if is_kept:
            kept.append(data[place:end])
        place = end
    return None


def strip_png(data: bytes) -> bytes | None:
    """Only the chunks that make the picture; of an animation the first frame."""
    kept = [_PNG_SIGNATURE]
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            return None
        if kind in _PNG_KEPT:
            kept.append(data[place:end])
        if kind == b"IEND":
            return b"".join(kept)
        place = end
    return None


def strip_webp(data: bytes) -> bytes | None:
    """Only the chunk with the picture; None for one with an alpha channel or an animation."""
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        if kind in _WEBP_PIXELS:
            chunk = data[place:end]
            return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk if end <= len(data) + 1 else None
        if kind in (b"ALPH", b"ANIM", b"ANMF"):
            return None
        place = end
    return None


STRIPPERS: dict[str, Callable[[bytes], bytes | None]] = {"JPEG": strip_jpeg, "PNG": strip_png, "WEBP": strip_webp}
