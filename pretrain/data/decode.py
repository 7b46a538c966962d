"""Image bytes → RGB pixels. JPEGs go the quick way, everything else through Pillow.

The size is known before anything is decoded, and an image with too many pixels is refused. What is not RGB becomes it:
grey gets three equal channels, palettes are resolved, transparency is laid over white, CMYK is converted, 16-bit
samples keep their upper 8 bits. EXIF orientation is honoured. Of an animation the first frame counts.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pretrain.data import turbojpeg
from pretrain.data.faults import BadSample

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of 3-byte pixels
Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width

_EXIF_ORIENTATION = 0x0112
_JPEG_START = b"\xff\xd8\xff"
_EXIF_WITHIN_BYTES = 4096


class EncodedImage(Protocol):
    """An image whose size is known and whose pixels are not decoded yet. Sizes are those of the upright image."""

    height: int
    width: int

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The upright RGB pixels, uint8 (h, w, 3).

        Args:
            min_height: the image may be made smaller while it is decoded, down to this height; None: full size.
            min_width: likewise for the width.
        """
        ...

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The pixels of ``decode`` that lie in a box of the full-size image; only these are decoded, where it helps.

        Args:
            box: (top, left, height, width); in a smaller decode its edges are rounded, and it is never empty.
            min_height: as in ``decode``.
            min_width: likewise.
        """
        ...


def open_image(data: bytes) -> EncodedImage:
    """Reads an image's header.

    Raises:
        BadSample: not an image, or more than ``MAX_PIXELS`` pixels.
    """
    if data.startswith(_JPEG_START):
        size = _jpeg_size(data)
        if size is not None:
            return _JpegImage(data, *size)
    return _PillowImage(data)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in a usual colour space; None: leave it to Pillow."""
    if turbojpeg.available():
        with contextlib.suppress(turbojpeg.DecodeError):
            return turbojpeg.read_size(data)
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(height), int(width)) if colour in ("RGB", "YCbCr", "Gray") else None


class _JpegImage:
    """A JPEG in a usual colour space: libjpeg-turbo, scaled by eighths in the DCT where a smaller image will do."""

    def __init__(self, data: bytes, height: int, width: int) -> None:
        _check_pixels(height, width)
        self._data = data
        self._orientation = _jpeg_orientation(data)
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        lowest = (min_height or self.height, min_width or self.width)
        if self._orientation >= 5:
            lowest = lowest[::-1]
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, colorspace="RGB", min_height=lowest[0], min_width=lowest[1], min_factor=2
            )
        except ValueError:  # a damaged file, or one with an oddity that Pillow forgives
            return _PillowImage(self._data).decode()
        return _upright(pixels, self._orientation)

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        if self._orientation != 1:  # the rows and columns of a smaller copy would count from other edges
            return inside(self.decode(), box)
        eighths = dct_eighths(self.height, self.width, min_height or self.height, min_width or self.width)
        top, left, height, width = box if eighths == 8 else scaled_box(box, self.height, self.width, eighths)
        if turbojpeg.available():
            with contextlib.suppress(turbojpeg.DecodeError):  # then Pillow has the last word, as below
                part = turbojpeg.decode_part(self._data, top, left, height, width, eighths)
                return inside(part.pixels, (top - part.top, left - part.left, height, width))
        pixels = self.decode(min_height, min_width)
        if pixels.shape[0] == self.height:  # by Pillow, perhaps, which decodes at full size
            return inside(pixels, box)
        return inside(pixels, (top, left, height, width))


class _PillowImage:
    """Anything that Pillow reads, decoded at once."""

    def __init__(self, data: bytes) -> None:
        self._pixels = _decode_with_pillow(data).pixels
        self.height, self.width = self._pixels.shape[:2]

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        return self._pixels

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        return inside(self._pixels, box)


def dct_eighths(height: int, width: int, min_height: int, min_width: int) -> int:
    """The smallest of 1 … 4 eighths at which an image keeps its least size, or 8: others cost more than they save.

    Source: simplejpeg's rule for ``min_factor=2``, so that a part is decoded at the scale of the whole.
    """
    for eighths in (1, 2, 3, 4):
        if -(-height * eighths // 8) >= min_height and -(-width * eighths // 8) >= min_width:
            return eighths
    return 8


def scaled_box(box: Box, height: int, width: int, eighths: int) -> Box:
    """The box in a copy of the image that is scaled in the DCT, rounded to its pixels and never empty.

    A pixel of the copy stands for 8 / eighths of the image's, from its first row and column on; the last ones may stand
    for less.

    Args:
        box: in the image.
        height: of the image.
        width: of the image.
        eighths: the scale.
    """
    edges = []
    for first, length, side in ((box[0], box[2], height), (box[1], box[3], width)):
        scaled = -(-side * eighths // 8)
        start = min(round(first * eighths / 8), scaled - 1)
        edges.append((start, min(scaled, max(start + 1, round((first + length) * eighths / 8))) - start))
    (top, box_height), (left, box_width) = edges
    return top, left, box_height, box_width


def inside(pixels: Pixels, box: Box) -> Pixels:
    """The part of an image (h, w, 3), a view."""
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


@dataclass(frozen=True)
class Decoded:
    """An image that was decoded to the last pixel, and what its file was like.

    Attributes:
        pixels: upright RGB, uint8 (h, w, 3).
        format: Pillow's name, such as JPEG.
        mode: Pillow's name of the stored channels, such as RGB, L or CMYK.
        oddity: what a reader must mind, in one word: an orientation, a mode that is not RGB, several frames; or "".
        quantization: a JPEG's tables.
    """

    pixels: Pixels
    format: str
    mode: str
    oddity: str
    quantization: dict[int, list[int]]

    @property
    def is_plain(self) -> bool:
        """The file holds one upright 8-bit RGB picture, as every reader sees it."""
        return not self.oddity


def decode_strictly(data: bytes, max_pixels: int | None = None) -> Decoded:
    """Decodes every pixel with Pillow, which reports truncation: the packer's check.

    Raises:
        BadSample: says why.
    """
    return _decode_with_pillow(data, max_pixels)


def _oddity(image: Image.Image, orientation: int) -> str:
    if orientation != 1:
        return "rotated"
    if image.mode != "RGB" or "transparency" in image.info:
        return f"mode {image.mode}"
    return "animated" if getattr(image, "n_frames", 1) > 1 and image.format != "MPO" else ""


def _decode_with_pillow(data: bytes, max_pixels: int | None = None) -> Decoded:
    with warnings.catch_warnings():  # remarks about metadata, and about sizes that are checked here
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                _check_pixels(image.height, image.width, max_pixels)
                image.load()
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
                oddity = _oddity(image, orientation if orientation in range(1, 9) else 1)
                pixels = _to_rgb(ImageOps.exif_transpose(image))
                return Decoded(pixels, image.format or "", image.mode, oddity, getattr(image, "quantization", {}))
        except Image.DecompressionBombError as error:
            raise BadSample("too_large", str(error)) from error
        except BadSample:
            raise
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged data
            raise BadSample("decode", f"{type(error).__name__}: {_without_addresses(str(error))}") from error


def _without_addresses(text: str) -> str:
    """Pillow names the buffer's address in some messages; a log of two equal runs should be equal."""
    return text if " object at 0x" not in text else "cannot identify image file"


def _check_pixels(height: int, width: int, max_pixels: int | None = None) -> None:
    limit = max_pixels or MAX_PIXELS
    if height * width > limit:
        raise BadSample("too_large", f"{width}×{height} pixels; the limit is {limit:,}")


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(np.asarray(image))
    return np.asarray(image.convert("RGB"))


def _deep_grey_to_rgb(values: NDArray[np.generic]) -> Pixels:
    """Grey samples of more than 8 bits: integers beyond 255 count as 16-bit, floats within [0, 1] as a share."""
    numbers = np.nan_to_num(values.astype(np.float64))
    largest = numbers.max(initial=0)
    if values.dtype.kind == "f":
        numbers = numbers * (255 if largest <= 1 else 1)
    elif values.dtype.itemsize == 2 or largest > 255:
        numbers = np.floor(numbers / 256)
    grey = np.clip(numbers, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _jpeg_orientation(data: bytes) -> int:
    """EXIF orientation 1 … 8; the header is parsed only where a file has one."""
    if data.find(b"Exif\x00\x00", 0, _EXIF_WITHIN_BYTES) < 0:
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except Exception:  # damaged metadata around a readable picture: upright is the best guess
            return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation. Source: EXIF 2.3, tag 0x0112."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if orientation > 1 else pixels
