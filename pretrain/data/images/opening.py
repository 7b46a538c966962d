"""The only place where Pillow opens an image: which formats, how large, how it is turned and coloured.

Everything in the product that looks at an image, packing, training, evaluation, prediction, masks and duplicates, opens
it here or by ``decode.open_image``, so that all see the same pixels. Formats are named, since Pillow knows more than 40
by their first bytes, whatever a file is called, and starts Ghostscript for some.
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

from pretrain.data.images import jpeg_segments, png_chunks
from pretrain.data.images.colour import Conversion, UnreadableProfile, conversion, png_profile
from pretrain.data.images.grey_depth import grey_levels
from pretrain.data.workers.faults import BadSample
from pretrain.errors import UserError

MAX_SCANS = 500  # a progressive file of a million empty scans would keep a process busy for hours
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of 3-byte pixels
ROTATED, CONVERTED, FIRST_FRAME = "rotated", "converted to sRGB", "first frame of several"
PROFILE_IGNORED, REPAIRED = "unreadable colour profile ignored", "damaged metadata ignored"
END_ADDED, WARNED = "end marker added", "read with a warning"
READING = 2  # of this module: grows when the pixels of some file change

Pixels = NDArray[np.uint8]
Number = TypeVar("Number", bound=np.generic)

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_DAMAGE = ("premature end", "bad huffman", "bad arithmetic", "must_resync", "out of order")  # libjpeg's warnings
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
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
    """An image that was decoded to the last pixel, and what its file was like.

    Attributes:
        pixels: upright sRGB, uint8 (h, w, 3).
        format: Pillow's name, such as JPEG.
        mode: Pillow's name of the stored channels, such as RGB, L or CMYK.
        oddities: what a reader must mind, in a few words each: an orientation, a mode that is not RGB, several frames.
        remarks: what was wrong around the picture and does not change it.
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
        """The file holds one upright 8-bit sRGB picture, as every reader sees it."""
        return not self.oddities


def check_pixels(height: int, width: int, max_pixels: int | None = None) -> None:
    """Refuses an image by its size.

    Raises:
        BadSample: more pixels than ``max_pixels``; None: ``MAX_PIXELS``.
    """
    limit = max_pixels or MAX_PIXELS
    if height * width > limit:
        raise BadSample("too_large", f"{width}×{height} pixels; the limit is {limit:,}")


@contextlib.contextmanager
def opened(data: bytes, max_pixels: int | None = None, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The image in a file's bytes, its pixels not decoded yet; what goes wrong inside becomes a ``BadSample``.

    Args:
        data: the file.
        max_pixels: more are refused before anything is decoded; None: ``MAX_PIXELS``.
        formats: Pillow's names of those that are read.

    Raises:
        BadSample: not an image in one of the formats, damaged, or too large.
    """
    Image.init()
    known = [name for name in formats if name in Image.OPEN]  # AVIF and JPEG 2000 depend on the build
    with warnings.catch_warnings():  # remarks about metadata, and about sizes that are checked here
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
    """Decodes every pixel with Pillow, which reports truncation: the packer's check.

    A file of which only metadata is damaged, or the last two bytes of a JPEG are missing, is decoded all the same.

    Raises:
        BadSample: says why.
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
    """The file with what is missing around its picture; None: it is the picture that is damaged, or nothing is."""
    if data.startswith(png_chunks.SIGNATURE):
        return png_chunks.picture(data, also=png_chunks.LOOK), REPAIRED
    if data.startswith(jpeg_segments.START) and jpeg_segments.end_of_picture(data) is None:
        completed = data + jpeg_segments.END_MARKER
        with contextlib.suppress(ValueError):
            simplejpeg.decode_jpeg(completed, strict=True)  # an incomplete picture gives a warning there, an error here
            return completed, END_ADDED
    return None, ""


def _decode(data: bytes, max_pixels: int | None, remarks: tuple[str, ...] = ()) -> Decoded:
    is_jpeg = data.startswith(jpeg_segments.START)
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
        if png_chunks.has_16_bits(data):
            oddities.append("16 bits a channel")
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            oddities.append(FIRST_FRAME)
        pixels, found, remark = _to_srgb(image, stored)
        return Decoded(
            upright(pixels, orientation),
            image.format or "",
            image.mode,
            (*oddities, *found),
            (*remarks, *warned, *remark),
            getattr(image, "quantization", {}),
            orientation,
        )


def read_jpeg(data: bytes) -> jpeg_segments.Header:
    """The header of a JPEG.

    Raises:
        BadSample: its picture comes in more scans than any encoder writes.
    """
    header = jpeg_segments.read_header(data)
    if header.num_scans > MAX_SCANS:
        raise BadSample("decode", f"{header.num_scans:,} scans; the limit is {MAX_SCANS}")
    return header


def _jpeg_pixels(data: bytes) -> tuple[Pixels | None, tuple[str, ...]]:
    """The pixels of a JPEG in RGB or grey, and a remark; None: Pillow, which overlooks warnings, decodes it.

    Raises:
        BadSample: a part of the picture is missing, which Pillow would show as grey.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True), ()
    except ValueError as error:
        if any(word in str(error).lower() for word in _DAMAGE):
            raise BadSample("decode", f"a part of the picture is missing or damaged ({error})") from error
        return None, (WARNED,)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 … 8 of anything but a JPEG; a TIFF's pixels are upright already once they are loaded."""
    orientation: object = None
    with contextlib.suppress(Exception):  # damaged metadata around a readable picture
        orientation = image.getexif().get(_ORIENTATION)
    return _allowed(orientation)


def _allowed(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def jpeg_orientation(header: jpeg_segments.Header) -> int:
    """EXIF orientation 1 … 8 of a JPEG; what XMP says counts where Exif says nothing, as in Pillow."""
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


def profile_of(profile: bytes, channels: int) -> tuple[Conversion | None, str]:
    """The conversion that a profile asks for, None where there is nothing to convert, and a remark or "".

    Args:
        profile: ICC; b"": none.
        channels: stored in the picture, without an alpha channel.
    """
    if not profile:
        return None, ""
    try:
        found = conversion(profile)
    except UnreadableProfile:
        return None, PROFILE_IGNORED
    if not found.fits(channels):
        return None, PROFILE_IGNORED
    return (None if found.is_identity else found), ""


def _to_srgb(image: Image.Image, stored: Pixels | None = None) -> tuple[Pixels, list[str], list[str]]:
    """Pixels (not upright yet) in sRGB and over white, with oddities and remarks.

    Args:
        image: whose pixels and profile.
        stored: its RGB pixels, where they are decoded already.
    """
    oddities: list[str] = []
    profile = image.info.get("icc_profile") or b""
    if not profile and image.format == "PNG" and "srgb" not in image.info:
        profile = png_profile(image.info.get("gamma"), image.info.get("chromaticity"))
    channels = {"CMYK": 4, "L": 1, "LA": 1, "La": 1, "1": 1, "F": 1}.get(image.mode, 1 if image.mode[0] == "I" else 3)
    found, remark = profile_of(profile, channels)
    if found is not None:
        oddities.append(CONVERTED)
        if found.mode == "CMYK":
            return found.of_image(image), oddities, []
    pixels, alpha, depth = _to_rgb(image) if stored is None else (stored, None, "")
    oddities += [depth] if depth else []
    if found is not None:
        pixels = found.of_pixels(pixels)
    return over_white(pixels, alpha), oddities, [remark] if remark else []


def _to_rgb(image: Image.Image) -> tuple[Pixels, Pixels | None, str]:
    """RGB (h, w, 3), alpha (h, w) or None, and how deep grey was read."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        bits = 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else None
        grey, depth = grey_levels(values, bits)
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
        return np.repeat(grey[:, :, None], 3, axis=2), alpha, depth if bits is None else ""
    if image.mode in _ALPHA_MODES or transparent is not None:
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[:, :, :3]), rgba[:, :, 3], ""
    return np.asarray(image.convert("RGB")), None, ""


def over_white(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """Lays a picture over white."""
    if alpha is None:
        return pixels
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
