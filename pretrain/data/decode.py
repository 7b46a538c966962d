"""Image bytes → RGB pixels. JPEGs go the quick way, everything else through Pillow.

The size is known before anything is decoded, and an image with too many pixels is refused. What is not RGB becomes it:
grey gets three equal channels, palettes are resolved, transparency is laid over white, CMYK is converted, 16-bit
samples keep their upper 8 bits. EXIF orientation is honoured. Of an animation the first frame counts.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pretrain.data.faults import BadSample

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of 3-byte pixels
Pixels = NDArray[np.uint8]

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


def open_image(data: bytes) -> EncodedImage:
    """Reads an image's header.

    Raises:
        BadSample: not an image, or more than ``MAX_PIXELS`` pixels.
    """
    if data.startswith(_JPEG_START):
        try:
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return _PillowImage(data)
        if colour in ("RGB", "YCbCr", "Gray"):
            return _JpegImage(data, int(height), int(width))
    return _PillowImage(data)


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


class _PillowImage:
    """Anything that Pillow reads, decoded at once."""

    def __init__(self, data: bytes) -> None:
        self._pixels = _decode_with_pillow(data).pixels
        self.height, self.width = self._pixels.shape[:2]

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        return self._pixels


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
    if b"Exif\x00\x00" not in data[:_EXIF_WITHIN_BYTES]:
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
