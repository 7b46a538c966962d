"""Stored channels → 8-bit sRGB over white, so that a model always sees RGB.

Grey becomes three equal channels, palettes are looked up, CMYK and other colour spaces are converted by their ICC
profile, and transparent images are composited over white.

Grey of more than 8 bits is a special case. A 16-bit type defines its range, so the upper 8 bits are kept. 32-bit
integers and floats do not: the smallest of the usual ranges that contains all of the image's values is assumed, and an
image that fits none of them is refused.

littlecms applies the profiles. One that changes no colour visibly counts as sRGB, and its pixels are not changed.
Colours that a file defines by numbers (a PNG's gAMA, cHRM and cICP chunks, an AVIF's nclx box) are first turned into a
profile.

Source: ICC.1:2022; PNG specification, third edition, sections 11.3.2 (gAMA, cHRM, cICP) and 13.13; ITU-T H.273,
tables 2 and 3.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from pretrain.data.images.containers import CodePoints
from pretrain.errors import BadSample, SetupError

Pixels = NDArray[np.uint8]
CONVERTED = "converted to sRGB"
PROFILE_IGNORED = "unreadable colour profile ignored"
UNCONVERTED = "colours in a coding that is not converted"
INTEGER_BITS = (8, 16, 24, 31)  # integers from 0 to 2 ** bits − 1
FLOAT_TOPS = (1.0, 255.0, 65535.0)
_SLACK = 1 / 512  # of the range: half a level, by which resampled floats overshoot
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

SAME_AS_SRGB = 2  # levels: published sRGB profiles round their curves and primaries differently
_GRID_STEPS = 17
_NO_CACHE = 0x0040  # ImageCms.Flags.NOCACHE, in Pillow from 10.3 on: the one-pixel cache is not thread-safe
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue, each x and y
_SRGB_GAMMA = 1 / 2.2
_H273_PRIMARIES = {  # of ITU-T H.273, as _SRGB_PRIMARIES; 2 is "unspecified"
    1: _SRGB_PRIMARIES,
    2: _SRGB_PRIMARIES,
    4: (0.31, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.329, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_CURVE_POINTS = 1024
_GAMMA_TOLERANCE, _PRIMARIES_TOLERANCE = 0.05, 0.01  # libpng's thresholds
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(
    image: Image.Image, stored: Pixels | None = None, coding: CodePoints | None = None
) -> tuple[Pixels, list[str], list[str]]:
    """Pixels in sRGB and over white, not rotated upright yet, with oddities and remarks for the card.

    Args:
        image: the image.
        stored: its RGB pixels, if they are decoded already.
        coding: its colour code points, if the file has them.
    """
    oddities: list[str] = []
    profile, coding_remark = _profile_in(image, coding)
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
    return over_white(pixels, alpha), oddities, [one for one in (remark, coding_remark) if one]


def _profile_in(image: Image.Image, coding: CodePoints | None) -> tuple[bytes, str]:
    """The profile that applies to an image, b"" for sRGB, and a remark or ""."""
    profile = image.info.get("icc_profile") or b""
    if coding is not None and (image.format == "PNG" or not profile):  # in a PNG, cICP precedes everything else
        coded = coded_profile(coding.primaries, coding.transfer) if coding.is_full_range_rgb else None
        return (profile, UNCONVERTED) if coded is None else (coded, "")
    if not profile and image.format == "PNG" and "srgb" not in image.info:
        profile = png_profile(image.info.get("gamma"), image.info.get("chromaticity"))
    return profile, ""


def profile_of(profile: bytes, channels: int) -> tuple[Conversion | None, str]:
    """The conversion for a profile (None if there is nothing to convert), and a remark or "".

    Args:
        profile: ICC; b"" if there is none.
        channels: number of stored channels, without alpha.
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


def _to_rgb(image: Image.Image) -> tuple[Pixels, Pixels | None, str]:
    """RGB (h, w, 3), alpha (h, w) or None, and the range assumed for deep grey, or ""."""
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
    """Composites a picture over white; alpha (h, w), None if it is opaque."""
    if alpha is None:
        return pixels
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def grey_levels(values: NDArray[np.generic], bits: int | None) -> tuple[Pixels, str]:
    """Levels 0 … 255, uint8 (h, w), and the assumed range, for the card.

    Args:
        values: (h, w), integers or floats; NaN counts as 0.
        bits: the range of the file's integer type; None if the type does not define it.

    Raises:
        BadSample: values are negative, infinite, or larger than any usual range.
    """
    if values.dtype.kind == "f":
        return _levels_of_floats(values)
    lowest, largest = int(values.min(initial=0)), int(values.max(initial=0))
    wanted = bits or next((bits for bits in INTEGER_BITS if largest < 1 << bits), None)
    if lowest < 0 or wanted is None:
        raise _refused("whole numbers", lowest, largest, "0 to 2147483647")
    return np.right_shift(values, wanted - 8).astype(np.uint8), f"grey of {wanted} bits"  # type: ignore[call-overload]


def _levels_of_floats(values: NDArray[np.generic]) -> tuple[Pixels, str]:
    if values.size and np.isnan(values.astype(np.float64)).all():  # it would become a black picture
        raise BadSample("decode", "grey floats that are all NaN: there is no picture")
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    lowest, largest = float(numbers.min(initial=0)), float(numbers.max(initial=0))
    top = next((top for top in FLOAT_TOPS if largest <= top * (1 + _SLACK)), None)
    if top is None or lowest < -top * _SLACK:
        raise _refused("floats", lowest, largest, "0 to 1, 0 to 255 or 0 to 65535")
    np.multiply(numbers, 255 / top, out=numbers)
    return np.rint(numbers, out=numbers).clip(0, 255).astype(np.uint8), f"float grey from 0 to {top:.0f}"


def _refused(what: str, lowest: float, largest: float, allowed: str) -> BadSample:
    return BadSample("decode", f"grey {what} from {lowest:g} to {largest:g}; read are {allowed}: convert it to 8 bits")


class UnreadableProfile(Exception):
    """The bytes are not a profile that littlecms understands."""


@dataclass(frozen=True)
class Conversion:
    """Converts from a profile to sRGB.

    Attributes:
        mode: Pillow's name of the input channels: RGB, L or CMYK.
        is_identity: whether the profile is sRGB already.
    """

    mode: str
    is_identity: bool
    _transform: Any
    _table: Pixels

    def fits(self, channels: int) -> bool:
        """Whether it applies to pixels stored with this number of channels; RGB profiles also apply to grey."""
        return {"RGB": channels in (1, 3), "L": channels == 1, "CMYK": channels == 4}[self.mode]

    def of_pixels(self, pixels: Pixels) -> Pixels:
        """Converts RGB pixels (h, w, 3); grey ones have three equal channels."""
        if self.is_identity:
            return pixels
        return self._table[pixels] if self.mode == "L" else self.of_image(Image.fromarray(pixels))

    def of_image(self, image: Image.Image) -> Pixels:
        """Converts a Pillow image of ``mode`` to RGB pixels (h, w, 3)."""
        return np.asarray(ImageCms.applyTransform(image, self._transform))


@lru_cache(maxsize=32)
def conversion(profile: bytes) -> Conversion:
    """The conversion from an ICC profile to sRGB.

    Raises:
        UnreadableProfile: it is damaged, or not for images in RGB, grey or CMYK.
        SetupError: Pillow was built without littlecms.
    """
    if not features.check("littlecms2"):
        raise SetupError("this Pillow cannot convert colour profiles; install one with littlecms2, such as its wheels")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[opened.profile.xcolor_space.strip()]  # pyright: ignore[reportAttributeAccessIssue]
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB", flags=_NO_CACHE)  # pyright: ignore
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError) as error:
        raise UnreadableProfile(str(error)) from error
    ramp = np.arange(256, dtype=np.uint8)
    table, is_identity = ramp, False
    if mode == "L":  # a table, so that grey stays exactly grey
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(ramp[None]), transform))
        table = np.rint(moved[0].mean(1)).astype(np.uint8)
        is_identity = bool(np.abs(table.astype(int) - ramp).max() <= SAME_AS_SRGB)
    elif mode == "RGB":
        grid = _grid()
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
        is_identity = bool(np.abs(moved.astype(int) - grid).max() <= SAME_AS_SRGB)
    return Conversion(mode, is_identity, transform, table)


def _grid() -> Pixels:
    steps = np.rint(np.linspace(0, 255, _GRID_STEPS)).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(_GRID_STEPS, -1, 3)


def png_profile(gamma: float | None, primaries: Sequence[float] | None) -> bytes:
    """The ICC profile of a PNG's gAMA and cHRM chunks; b"" if that is sRGB, or unusable.

    Args:
        gamma: of the encoding, as in the chunk: 1 / 2.2 is usual, 1 is linear light; None: no chunk.
        primaries: x and y of white, red, green and blue; None: no chunk.
    """
    gamma = gamma or _SRGB_GAMMA
    wanted = np.array(primaries if primaries is not None else _SRGB_PRIMARIES, dtype=float)
    is_usual = abs(gamma / _SRGB_GAMMA - 1) < _GAMMA_TOLERANCE
    if is_usual and wanted.shape == (8,) and np.abs(wanted - _SRGB_PRIMARIES).max() < _PRIMARIES_TOLERANCE:
        return b""
    try:
        exponent = struct.pack(">IHxx", 1, round(256 / gamma))
        return _matrix_profile(_colorants(wanted), exponent)
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError, struct.error):  # physically impossible primaries
        return b""


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile of ITU-T H.273 code points; b"" for sRGB, None if no matrix profile can hold them (PQ, HLG)."""
    corners, values = _H273_PRIMARIES.get(primaries), np.linspace(0, 1, _CURVE_POINTS)
    if corners == _SRGB_PRIMARIES and transfer in (2, 13):
        return b""
    match transfer:
        case 1 | 6 | 14 | 15:  # BT.709 and equivalents
            light = np.where(
                values < 0.0812428583, values / 4.5, ((values + 0.0992968268) / 1.0992968268) ** (1 / 0.45)
            )
        case 2 | 13:
            light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        case 4 | 5 | 8:
            light = values ** {4: 2.2, 5: 2.8, 8: 1.0}[transfer]
        case _:
            return None
    if corners is None:
        return None
    table = struct.pack(">I", _CURVE_POINTS) + np.rint(light * 65535).astype(">u2").tobytes()
    return _matrix_profile(_colorants(np.array(corners)), table)


def _colorants(primaries: NDArray[np.float64]) -> NDArray[np.float64]:
    """XYZ of red, green and blue (rows), adapted to the white point D50. Source: Lindbloom, RGB/XYZ matrices."""
    x, y = primaries.reshape(4, 2).T
    if not (y > 0).all():
        raise ValueError("a chromaticity without luminance")
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    white, corners = xyz[0], xyz[1:].T
    colorants = corners * np.linalg.solve(corners, white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    return (adapted @ colorants).T


def _matrix_profile(colorants: NDArray[np.float64], points: bytes) -> bytes:
    """A version 2 profile with three colorants and the points of one curve.

    Source: ICC.1:2001-04, sections 6.1, 6.3.1 and 6.5.
    """

    def fixed(values: Sequence[float] | NDArray[np.float64]) -> bytes:
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + points
    text = b"desc\0\0\0\0" + struct.pack(">I", 4) + b"PNG\0" + bytes(78)
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0\0\0\0\0"), (b"wtpt", b"XYZ \0\0\0\0" + fixed(_D50))]
    for letter, colorant in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags += [(letter + b"XYZ", b"XYZ \0\0\0\0" + fixed(colorant)), (letter + b"TRC", curve)]
    table, body = struct.pack(">I", len(tags)), b""
    for signature, content in tags:
        table += signature + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = bytearray(128)
    head[:4] = struct.pack(">I", 128 + len(table) + len(body))
    head[8:12], head[12:24], head[36:40] = b"\2\x20\0\0", b"mntrRGB XYZ ", b"acsp"
    head[68:80] = fixed(_D50)
    return bytes(head) + table + body
