"""Prepares an image for packing: decodes it once, makes it a plain RGB file, and shrinks it where asked to.

A file that is plain sRGB already keeps its compressed pixels; only its metadata and any bytes after a JPEG's
picture are removed. Everything else is encoded again, losslessly where the original was lossless. JPEGs get restart
markers (``markers``).

Source: JPEG: ITU-T T.81, annex B; PNG: third edition, section 5; WebP: RFC 9649, section 2.7.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from pipelines.pack.markers import with_markers
from pretrain.data.images.containers import JPEG_END, JPEG_START, START_OF_SCAN, end_of_jpeg, jpeg_segments, png_picture
from pretrain.data.images.opening import ROTATED, Decoded, decode_strictly
from pretrain.data.images.turbojpeg import turned_upright
from pretrain.errors import BadSample

LOSSY = {"jpeg": ("JPEG", "jpg"), "webp": ("WEBP", "webp")}
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
FORMAT_OF = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP"}  # MPO: a JPEG followed by others
SMALLER, OTHER_FORMAT, ENCODED_ANEW = "made smaller", "other format", "encoded anew"
METADATA_REMOVED, TRAILING_REMOVED = "metadata removed", "bytes behind the picture removed"
TOO_SMALL = "too_small"
SAME_EXTENSIONS = {"JPEG": ("jpg", "jpeg"), "PNG": ("png",), "WEBP": ("webp",)}
_APP0, _APP14, _APP15, _COMMENT = 0xE0, 0xEE, 0xEF, 0xFE
_WEBP_PIXELS = frozenset([b"VP8 ", b"VP8L"])
_ANIMATION_FRAME, _FRAME_HEADER = b"ANMF", 16


@dataclass(frozen=True)
class ImageOptions:
    """How images are packed.

    Attributes:
        mode: "rgb": an upright 8-bit sRGB file without metadata; "keep": the bytes as they are.
        encode: "jpeg" or "webp": other formats are converted to it; "": anything but JPEG and WebP becomes PNG.
        quality: of lossy encoding.
        short_side: images whose shorter side is longer are made smaller; 0: none.
        min_side: images whose shorter side is shorter are left out; 0: none.
        max_pixels: larger images are rejected before they are decoded; None: Pillow's own limit.
    """

    mode: str = "keep"
    encode: str = ""
    quality: int = 95
    short_side: int = 0
    min_side: int = 0
    max_pixels: int | None = None


class PackedImage(NamedTuple):
    """Bytes to pack and their extension.

    Attributes:
        size: (height, width) of the picture that is packed.
        changes: the changes made, in a few words each.
        original: (height, width) of the upright picture before.
        orientation: EXIF, 1 … 8, of the stored one.
        markers: whether a JPEG has restart markers, and why not, in words; "" for other files and unchanged ones.
    """

    data: bytes
    extension: str
    size: tuple[int, int]
    changes: tuple[str, ...]
    original: tuple[int, int]
    orientation: int = 1
    markers: str = ""


def make_image(data: bytes, extension: str, options: ImageOptions) -> PackedImage:
    """Decodes an image to the last pixel and converts it as the options specify.

    Args:
        data: an image file.
        extension: of its name, which is kept if the format is kept.
        options: how to convert it.

    Raises:
        BadSample: it cannot be decoded, has too many pixels, or is too small.
    """
    decoded = decode_strictly(data, options.max_pixels)
    height, width = size = decoded.pixels.shape[:2]
    if min(height, width) < options.min_side:
        raise BadSample(TOO_SMALL, f"{width}×{height} pixels; --min-side is {options.min_side}")
    if options.mode == "keep":
        return PackedImage(data, extension, size, (), size, decoded.orientation)
    made = _make_plain(data, extension, decoded, options)
    if not made.data.startswith(JPEG_START):
        return made
    marked = with_markers(made.data)
    return made._replace(data=marked.data, changes=(*made.changes, *marked.changes), markers=marked.outcome)


def _make_plain(data: bytes, extension: str, decoded: Decoded, options: ImageOptions) -> PackedImage:
    height, width = size = decoded.pixels.shape[:2]
    own = FORMAT_OF.get(decoded.format)
    wanted = LOSSY[options.encode][0] if options.encode else own or "PNG"
    shrinks = 0 < options.short_side < min(height, width)
    kept = _with_its_coefficients(data, decoded) if own == wanted and not shrinks else None
    if kept is not None:
        is_usual = extension in SAME_EXTENSIONS[wanted] and decoded.is_plain
        new_extension = extension if is_usual else EXTENSIONS[wanted]
        return PackedImage(kept, new_extension, size, _changes(data, kept, decoded), size, decoded.orientation)
    image = Image.fromarray(decoded.pixels)
    if shrinks:
        image = image.resize(_capped(height, width, options.short_side), Image.Resampling.LANCZOS)
    is_lossless = not options.encode and is_lossless_webp(data)
    new = _encode(image, wanted, options.quality, None if shrinks else decoded, is_lossless=is_lossless)
    changes = [*([SMALLER] if shrinks else []), *decoded.oddities, *decoded.remarks]
    changes += [OTHER_FORMAT] if own != wanted else [] if changes else [ENCODED_ANEW]
    changes += [TRAILING_REMOVED] if has_trailing_bytes(data) else []
    new_size = (image.height, image.width)
    return PackedImage(new, EXTENSIONS[wanted], new_size, tuple(changes), size, decoded.orientation)


def _with_its_coefficients(data: bytes, decoded: Decoded) -> bytes | None:
    """The file reduced to the upright picture with its compressed pixels unchanged; None: not possible."""
    if decoded.is_plain:
        return STRIPPERS[FORMAT_OF[decoded.format]](data)
    if FORMAT_OF[decoded.format] == "JPEG" and decoded.oddities == (ROTATED,):
        turned = turned_upright(data, decoded.orientation)
        return strip_jpeg(turned) if turned else None
    return None


def _changes(data: bytes, kept: bytes, decoded: Decoded) -> tuple[str, ...]:
    """The changes to a file that kept its compressed pixels, in words."""
    trailing = has_trailing_bytes(data)
    is_cut_only = data.startswith(kept) if trailing else kept == data
    metadata = [] if is_cut_only or not decoded.is_plain else [METADATA_REMOVED]
    return (*decoded.oddities, *decoded.remarks, *metadata, *([TRAILING_REMOVED] if trailing else []))


def _capped(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the requested shorter side."""
    factor = short_side / min(height, width)
    return max(round(width * factor), short_side), max(round(height * factor), short_side)


def _encode(
    image: Image.Image, image_format: str, quality: int, decoded: Decoded | None, *, is_lossless: bool
) -> bytes:
    buffer = io.BytesIO()
    settings: dict[str, Any] = {}
    if image_format == "JPEG":
        settings = {"quality": quality, "subsampling": "4:4:4"}
        if decoded is not None and decoded.format in ("JPEG", "MPO") and decoded.oddities == ("mode L",):
            # A grey JPEG's own table reproduces its coefficients exactly, so three channels cost no quality.
            settings = {"qtables": [decoded.quantization[0]] * 2, "subsampling": "4:2:0"}
    elif image_format == "WEBP":
        settings = {"lossless": True} if is_lossless else {"quality": quality, "method": 4}
    image.save(buffer, format=image_format, **settings)
    return buffer.getvalue()


# Removing everything but the picture from files. Each function returns the file without it, or None for a file that it
# cannot take apart.


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
