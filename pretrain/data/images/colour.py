"""Stored channels → 8-bit sRGB over white, so that a model always sees RGB.

Grey becomes three equal channels, palettes are looked up, CMYK and other colour spaces are converted by their ICC
profile (``profiles``), and transparent images are composited over white.

Grey of more than 8 bits is a special case. A 16-bit type defines its range, so the upper 8 bits are kept. 32-bit
integers and floats do not: the smallest of the usual ranges that contains all of the image's values is assumed, and an
image that fits none of them is refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.data.images.containers import CodePoints
from pretrain.data.images.profiles import Conversion, UnreadableProfile, coded_profile, conversion, png_profile
from pretrain.errors import BadSample

CONVERTED = "converted to sRGB"
PROFILE_IGNORED = "unreadable colour profile ignored"
UNCONVERTED = "colours in a coding that is not converted"
INTEGER_BITS = (8, 16, 24, 31)  # integers from 0 to 2 ** bits − 1
FLOAT_TOPS = (1.0, 255.0, 65535.0)
_SLACK = 1 / 512  # of the range: half a level, by which resampled floats overshoot
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")

Pixels = NDArray[np.uint8]


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
