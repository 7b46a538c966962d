"""Opens images with Pillow, with limits on formats and sizes, and reads their orientation.

Everything that reads an image (packing, training, evaluation, prediction, masks, duplicates) opens it here or with
``decode.open_image``, so all code sees the same pixels. The formats are an allow-list: Pillow recognises more than 40
by their first bytes, whatever the file is called, and starts Ghostscript for some of them.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.images.colour import Pixels, to_srgb
from pretrain.data.images.containers import (
    JPEG_END,
    JPEG_START,
    PNG_APPEARANCE,
    PNG_SIGNATURE,
    JpegHeader,
    code_points,
    end_of_jpeg,
    is_16_bit_png,
    png_picture,
    read_jpeg_header,
)
from pretrain.errors import BadSample, UserError

MAX_SCANS = 500  # a progressive file of a million empty scans would keep a process busy for hours
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of 3-byte pixels
# Counted in the packer's card. Oddities: how a picture is stored. Remarks: problems of the file around it.
ROTATED, FIRST_FRAME = "rotated", "first frame of several"
REPAIRED, END_ADDED, WARNED = "damaged metadata ignored", "end marker added", "read with a warning"
# Version of the decoded pixels. Increment it when any file's pixels change, so that cached features are recomputed.
READING = 3

Number = TypeVar("Number", bound=np.generic)

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_DAMAGE = ("premature end", "bad huffman", "bad arithmetic", "must_resync", "out of order")  # libjpeg's warnings
_LOOKS_LIKE = (
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"<", "HTML, SVG or XML"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "a video"),
)


@dataclass(frozen=True)
class Decoded:
    """A fully decoded image, and properties of its file.

    Attributes:
        pixels: upright sRGB, uint8 (h, w, 3).
        format: Pillow's name, such as JPEG.
        mode: Pillow's name of the stored channels, such as RGB, L or CMYK.
        oddities: features that other readers may get wrong, a few words each (orientation, mode, frames).
        remarks: damage around the picture that does not change it.
        quantization: a JPEG's tables.
        orientation: EXIF, 1 … 8, of the stored picture.
    """

    pixels: Pixels
    format: str
    mode: str
    oddities: tuple[str, ...]
    remarks: tuple[str, ...]
    quantization: dict[int, list[int]]
    orientation: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the file is one upright 8-bit sRGB picture, which all readers decode alike."""
        return not self.oddities


def check_pixels(height: int, width: int, max_pixels: int | None = None) -> None:
    """Refuses an image with too many pixels.

    Raises:
        BadSample: it has more pixels than ``max_pixels`` (None: ``MAX_PIXELS``).
    """
    limit = max_pixels or MAX_PIXELS
    if height * width > limit:
        raise BadSample("too_large", f"{width}×{height} pixels; the limit is {limit:,}")


@contextlib.contextmanager
def opened(data: bytes, max_pixels: int | None = None, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels; any error inside the block becomes a ``BadSample``.

    Args:
        data: the file.
        max_pixels: larger images are refused before anything is decoded; None: ``MAX_PIXELS``.
        formats: Pillow's names of the formats to accept.

    Raises:
        BadSample: not an image in one of the formats, damaged, or too large.
    """
    Image.init()
    known = [name for name in formats if name in Image.OPEN]  # AVIF and JPEG 2000 depend on Pillow's build
    with warnings.catch_warnings():  # about metadata, and about sizes, which are checked here
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=known) as image:
                check_pixels(image.height, image.width, max_pixels)
                yield image
        except Image.DecompressionBombError as error:
            raise BadSample("too_large", str(error)) from error
        except (BadSample, UserError):
            raise
        except Image.UnidentifiedImageError as error:
            raise BadSample("decode", _unidentified(data, known)) from error
        except MemoryError as error:
            raise BadSample("too_large", "its pixels do not fit into memory") from error
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged data
            raise BadSample("decode", f"{type(error).__name__}: {error}") from error


def _unidentified(data: bytes, known: list[str]) -> str:
    kinds = [kind for place, start, kind in _LOOKS_LIKE if data.startswith(start, place)]
    what = (
        "an empty file"
        if not data
        else f"it looks like {kinds[0]}"
        if kinds
        else "not an image, or its first bytes are damaged"
    )
    return f"{what}; formats that are read: {', '.join(known)}"


def decode_strictly(data: bytes, max_pixels: int | None = None) -> Decoded:
    """Decodes every pixel and reports truncation. Used by the packer's check, and for everything but plain JPEGs.

    If only metadata is damaged, or only the last two bytes of a JPEG are missing, the picture is still decoded.

    Raises:
        BadSample: names the reason.
    """
    try:
        return _decode(data, max_pixels)
    except BadSample as bad:
        if bad.kind != "decode":
            raise
        repaired, remark = _repaired(data)
        if repaired is None:
            raise
        return _decode(repaired, max_pixels, (remark,))


def _repaired(data: bytes) -> tuple[bytes | None, str]:
    """The file with damage around its picture repaired, and the remark; None if it cannot be repaired."""
    if data.startswith(PNG_SIGNATURE):
        return png_picture(data, also=PNG_APPEARANCE), REPAIRED
    if data.startswith(JPEG_START) and end_of_jpeg(data) is None:
        completed = data + JPEG_END
        with contextlib.suppress(ValueError):
            simplejpeg.decode_jpeg(completed, strict=True)  # strict: refuses pictures that libjpeg only warns about
            return completed, END_ADDED
    return None, ""


def _decode(data: bytes, max_pixels: int | None, remarks: tuple[str, ...] = ()) -> Decoded:
    is_jpeg = data.startswith(JPEG_START)
    header = read_jpeg(data) if is_jpeg else None
    with opened(data, max_pixels) as image:
        if image.mode == "LAB":
            raise BadSample("decode", "mode LAB: convert it to sRGB")
        stored, warned = _jpeg_pixels(data) if is_jpeg and image.mode in ("RGB", "L") else (None, ())
        if stored is None:
            image.load()
        orientation = jpeg_orientation(header) if header else orientation_of(image)
        oddities = [ROTATED] if orientation != 1 else []
        if image.mode != "RGB" or "transparency" in image.info:
            oddities.append(f"mode {image.mode}")
        if is_16_bit_png(data):
            oddities.append("16 bits a channel")
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            oddities.append(FIRST_FRAME)
        pixels, found, remark = to_srgb(image, stored, code_points(data))
        return Decoded(
            upright(pixels, orientation),
            image.format or "",
            image.mode,
            (*oddities, *found),
            (*remarks, *warned, *remark),
            getattr(image, "quantization", {}),
            orientation,
        )


def read_jpeg(data: bytes) -> JpegHeader:
    """The header of a JPEG.

    Raises:
        BadSample: it has more scans than any encoder writes.
    """
    header = read_jpeg_header(data)
    if header.num_scans > MAX_SCANS:
        raise BadSample("decode", f"{header.num_scans:,} scans; the limit is {MAX_SCANS}")
    return header


def _jpeg_pixels(data: bytes) -> tuple[Pixels | None, tuple[str, ...]]:
    """RGB pixels of a JPEG in RGB or grey, and remarks; None if Pillow, which ignores warnings, must decode it.

    Raises:
        BadSample: a part of the picture is missing; Pillow would fill it with grey.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True), ()
    except ValueError as error:
        if any(word in str(error).lower() for word in _DAMAGE):
            raise BadSample("decode", f"a part of the picture is missing or damaged ({error})") from error
        return None, (WARNED,)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 … 8 of any format but JPEG. Pillow itself rotates a TIFF when it loads the pixels."""
    orientation: object = None
    with contextlib.suppress(Exception):  # damaged metadata around a readable picture
        orientation = image.getexif().get(_ORIENTATION)
    return _allowed(orientation)


def _allowed(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def jpeg_orientation(header: JpegHeader) -> int:
    """EXIF orientation 1 … 8 of a JPEG. XMP counts only where Exif has no orientation, as in Pillow."""
    orientation: object = None
    if header.exif:
        exif = Image.Exif()
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # damaged metadata around a readable picture
            warnings.simplefilter("ignore")
            exif.load(b"Exif\x00\x00" + header.exif)
            orientation = exif.get(_ORIENTATION)
    if orientation is None and (said := _XMP_ORIENTATION.search(header.xmp)):
        orientation = int(said[1])
    return _allowed(orientation)


def upright(pixels: NDArray[Number], orientation: int) -> NDArray[Number]:
    """Undoes an EXIF orientation of (h, w) or (h, w, 3). Source: EXIF 2.3, tag 0x0112."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if orientation > 1 else pixels
