"""Image bytes → sRGB pixels. JPEGs are decoded by libjpeg-turbo, everything else by Pillow (``opening``).

The size is read before anything is decoded, and an image with too many pixels is refused. Both decoders apply colour
profiles and EXIF orientation with the same functions, so they give the same pixels. The first frame of an animation is
used.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import simplejpeg

from pretrain.data.images import restarts, turbojpeg
from pretrain.data.images.colour import Pixels, profile_of
from pretrain.data.images.containers import JPEG_START, JpegHeader
from pretrain.data.images.opening import (
    check_pixels,
    decode_strictly,
    jpeg_orientation,
    read_jpeg,
    upright,
)

Box = tuple[int, int, int, int]  # top, left, height, width


class EncodedImage(Protocol):
    """An image with a known size that is not decoded yet. All sizes refer to the upright image."""

    height: int
    width: int

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The upright RGB pixels, uint8 (h, w, 3).

        Args:
            min_height: the decoder may scale the image down to this height; None: full size.
            min_width: likewise for the width.
        """
        ...

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        """The pixels of ``decode`` inside a box of the full-size image. Decodes only these if that is faster.

        Args:
            box: (top, left, height, width); in a scaled-down decode its edges are rounded, and it is never empty.
            min_height: as in ``decode``.
            min_width: likewise.
        """
        ...


def open_image(data: bytes) -> EncodedImage:
    """Reads an image's header.

    Raises:
        BadSample: not an image, or more than ``opening.MAX_PIXELS`` pixels.
    """
    size = restarts.plain_size(data)
    if size is not None:
        return _JpegImage(data, *size)
    if data.startswith(JPEG_START):
        size = _jpeg_size(data)
        if size is not None:
            return _JpegImage(data, *size, read_jpeg(data))
    return _PillowImage(data)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in RGB, YCbCr or grey; None for other files, which Pillow decodes."""
    if turbojpeg.available():
        with contextlib.suppress(turbojpeg.DecodeError):
            return turbojpeg.read_size(data)
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(height), int(width)) if colour in ("RGB", "YCbCr", "Gray") else None


class _JpegImage:
    """A JPEG in RGB, YCbCr or grey. If a smaller image suffices, it is scaled by eighths in the DCT.

    Args:
        data: the file.
        height: of the stored picture.
        width: of the stored picture.
        header: its metadata; None: there are none.
    """

    def __init__(self, data: bytes, height: int, width: int, header: JpegHeader | None = None) -> None:
        check_pixels(height, width)
        self._data = data
        self._orientation, self._conversion = 1, None
        if header is not None:
            self._orientation = jpeg_orientation(header)
            self._conversion, _ = profile_of(header.profile, header.channels)
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        lowest = (min_height or self.height, min_width or self.width)
        if self._orientation >= 5:
            lowest = lowest[::-1]
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, colorspace="RGB", min_height=lowest[0], min_width=lowest[1], min_factor=2
            )
        except ValueError:  # damaged, or with an oddity that Pillow tolerates
            return _PillowImage(self._data).decode()
        return upright(self._in_srgb(pixels), self._orientation)

    def _in_srgb(self, pixels: Pixels) -> Pixels:
        return pixels if self._conversion is None else self._conversion.of_pixels(pixels)

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        if self._orientation != 1:  # a scaled copy rounds its edges up at the stored right and bottom, not the upright
            return inside(self.decode(), box)
        eighths = dct_eighths(self.height, self.width, min_height or self.height, min_width or self.width)
        top, left, height, width = box if eighths == 8 else scaled_box(box, self.height, self.width, eighths)
        if turbojpeg.available():
            with contextlib.suppress(turbojpeg.DecodeError):  # decode() tries next, then Pillow
                return self._in_srgb(_decoded_part(self._data, (top, left, height, width), eighths))
        pixels = self.decode(min_height, min_width)
        if pixels.shape[0] == self.height:  # Pillow, which decodes at full size, may have decoded it
            return inside(pixels, box)
        return inside(pixels, (top, left, height, width))


def _decoded_part(data: bytes, box: Box, eighths: int) -> Pixels:
    """The pixels of a box of the scaled image, from as few restart intervals as possible."""
    top, left, height, width = box
    first_row, first_column = ((edge - turbojpeg.MARGIN) * 8 // eighths for edge in (top, left))
    last_row, last_column = (-((-edge - turbojpeg.MARGIN) * 8 // eighths) for edge in (top + height, left + width))
    cut = restarts.cut(data, first_row, first_column, last_row - first_row, last_column - first_column)
    if cut is not None:
        with contextlib.suppress(turbojpeg.DecodeError):  # the complete file may be readable
            # a cut begins at a multiple of 8 pixels, which is a whole number of scaled ones
            top_in_cut, left_in_cut = top - cut.top * eighths // 8, left - cut.left * eighths // 8
            part = turbojpeg.decode_part(cut.data, top_in_cut, left_in_cut, height, width, eighths)
            return inside(part.pixels, (top_in_cut - part.top, left_in_cut - part.left, height, width))
    part = turbojpeg.decode_part(data, top, left, height, width, eighths)
    return inside(part.pixels, (top - part.top, left - part.left, height, width))


class _PillowImage:
    """Any image that Pillow reads; decoded when it is opened."""

    def __init__(self, data: bytes) -> None:
        self._pixels = decode_strictly(data).pixels
        self.height, self.width = self._pixels.shape[:2]

    def decode(self, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        return self._pixels

    def decode_box(self, box: Box, min_height: int | None = None, min_width: int | None = None) -> Pixels:
        return inside(self._pixels, box)


def dct_eighths(height: int, width: int, min_height: int, min_width: int) -> int:
    """The smallest of 1 … 4 eighths at which an image keeps its minimum size, or 8.

    5, 6 and 7 eighths are not used, since their inverse DCTs cost more time than the smaller image saves.

    Source: simplejpeg's rule for ``min_factor=2``, so that ``decode`` and ``decode_box`` choose the same scale.
    """
    for eighths in (1, 2, 3, 4):
        if -(-height * eighths // 8) >= min_height and -(-width * eighths // 8) >= min_width:
            return eighths
    return 8


def scaled_box(box: Box, height: int, width: int, eighths: int) -> Box:
    """The box in a copy of the image that is scaled in the DCT, rounded to whole pixels and never empty.

    A pixel of the copy covers 8 / eighths pixels of the image, counted from the first row and column; the last row and
    column may cover fewer.

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
