"""What is done to an image when it is packed: decoded once, made a plain RGB file, made smaller where asked for.

A file that is plain RGB already keeps its compressed pixels; only its metadata goes. Everything else is encoded anew.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from pipelines.packing.metadata import STRIPPERS
from pretrain.data.decode import Decoded, decode_strictly
from pretrain.data.faults import BadSample

LOSSY = {"jpeg": ("JPEG", "jpg"), "webp": ("WEBP", "webp")}
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
FORMAT_OF = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WEBP"}  # MPO: a JPEG with others behind it
TOO_SMALL = "too_small"
SAME_EXTENSIONS = {"JPEG": ("jpg", "jpeg"), "PNG": ("png",), "WEBP": ("webp",)}


@dataclass(frozen=True)
class ImageOptions:
    """What every image becomes.

    Attributes:
        mode: "rgb": an upright 8-bit RGB file without metadata; "keep": the bytes as they are.
        encode: "jpeg" or "webp": images in other formats become this too; "": PNG for what is not a JPEG or WebP.
        quality: of whatever is encoded anew with losses.
        short_side: images whose shorter side is longer are made smaller; 0: none.
        min_side: images whose shorter side is shorter are left out; 0: none.
        max_pixels: more are refused before they are decoded; None: Pillow's own limit.
    """

    mode: str = "keep"
    encode: str = ""
    quality: int = 95
    short_side: int = 0
    min_side: int = 0
    max_pixels: int | None = None


class PackedImage(NamedTuple):
    """Bytes to pack, their extension, (height, width), what was changed in one word, or "", and the size before."""

    data: bytes
    extension: str
    size: tuple[int, int]
    change: str
    original: tuple[int, int]


def make_image(data: bytes, extension: str, options: ImageOptions) -> PackedImage:
    """Decodes an image to the last pixel and makes it what the options ask for.

    Args:
        data: an image file.
        extension: of its name, which is kept where its format is.
        options: what it becomes.

    Raises:
        BadSample: it cannot be decoded, has too many pixels, or is too small.
    """
    decoded = decode_strictly(data, options.max_pixels)
    height, width = decoded.pixels.shape[:2]
    if min(height, width) < options.min_side:
        raise BadSample(TOO_SMALL, f"{width}×{height} pixels; --min-side is {options.min_side}")
    if options.mode == "keep":
        return PackedImage(data, extension, (height, width), "", (height, width))
    own = FORMAT_OF.get(decoded.format)
    wanted = LOSSY[options.encode][0] if options.encode else own or "PNG"
    shrinks = 0 < options.short_side < min(height, width)
    if own is not None and own == wanted and decoded.is_plain and not shrinks:
        stripped = STRIPPERS[own](data)
        if stripped is not None:
            extension = extension if extension in SAME_EXTENSIONS[own] else EXTENSIONS[own]
            change = "" if stripped == data else "metadata removed"
            return PackedImage(stripped, extension, (height, width), change, (height, width))
    image = Image.fromarray(decoded.pixels)
    if shrinks:
        image = image.resize(_capped(height, width, options.short_side), Image.Resampling.LANCZOS)
    change = "made smaller" if shrinks else decoded.oddity or ("other format" if own != wanted else "encoded anew")
    new = _encode(image, wanted, options.quality, None if shrinks else decoded)
    return PackedImage(new, EXTENSIONS[wanted], (image.height, image.width), change, (height, width))


def _capped(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(width, height) with the shorter side as asked for."""
    factor = short_side / min(height, width)
    return max(round(width * factor), short_side), max(round(height * factor), short_side)


def _encode(image: Image.Image, image_format: str, quality: int, decoded: Decoded | None) -> bytes:
    buffer = io.BytesIO()
    settings: dict[str, Any] = {}
    if image_format == "JPEG":
        settings = {"quality": quality, "subsampling": "4:4:4"}
        if decoded is not None and decoded.format in ("JPEG", "MPO") and decoded.mode == "L":
            # A grey JPEG's own table gives its own coefficients again: three channels cost no quality.
            settings = {"qtables": [decoded.quantization[0]] * 2, "subsampling": "4:2:0"}
    elif image_format == "WEBP":
        settings = {"quality": quality, "method": 4}
    image.save(buffer, format=image_format, **settings)
    return buffer.getvalue()
