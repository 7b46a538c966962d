"""Small copies of images, as addresses that hold the picture itself."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from PIL import Image

from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import open_image

THUMBNAIL = 160  # pixels of the longer side
TINY = 64  # an image of at most so many pixels on a side is kept as it is, and enlarged by the browser


class Picture(NamedTuple):
    """``address`` is a ``data:`` URL; a tiny picture is drawn with visible pixels."""

    address: str
    is_tiny: bool


def thumbnail(data: bytes, side: int = THUMBNAIL) -> Picture:
    """A small copy of an encoded image.

    Raises:
        BadSample: it cannot be decoded.
    """
    pixels = open_image(data).decode(side, side)
    is_tiny = max(pixels.shape[:2]) <= TINY
    return Picture(_address(_at_most(pixels, side), "PNG" if is_tiny else "JPEG"), is_tiny)


def embedded(data: bytes, width: int) -> Picture:
    """A drawing at most ``width`` pixels wide, without the artefacts of JPEG.

    Raises:
        BadSample: it cannot be decoded.
    """
    image = Image.fromarray(open_image(data).decode())
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    return Picture(_address(image, "WEBP"), False)


def photo(pixels: Pixels) -> bytes:
    """A JPEG file of high quality, in the size that the pixels have."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def _at_most(pixels: Pixels, side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return image


def _address(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=form, quality=82)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
