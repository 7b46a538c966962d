"""Restart markers: they divide a JPEG's coded data into intervals, each of which can be decoded without the others.

``pack`` adds them with ``add_restarts``, and the decoder reads only the intervals that a crop touches, with ``cut``:
most of the time of a decode is entropy decoding, which otherwise has to start at the top left corner of the image. An
interval is about 64 pixels wide and divides a row of MCUs, so that a cut is a rectangle. Every JPEG reader reads them.

The work is done by a C extension (``native/``) that setup.py builds. Where it was not built, files are decoded as
without markers.

Legend: MCU = the smallest block of pixels that a JPEG codes together, 8 or 16 wide.
Source: ITU-T T.81, sections B.2.4.4 and F.1.2.3.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


def _extension() -> Any:
    try:
        return importlib.import_module("pretrain.data.images._restarts")
    except ImportError:
        return None


_native = _extension()


class Cut(NamedTuple):
    """A part of an image as a JPEG of its own, and where its first pixel is in the image."""

    data: bytes
    top: int
    left: int


def available() -> bool:
    """Whether the extension was built."""
    return _native is not None


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG; None: it has Exif, XMP or a colour profile, is not sequential, or may be damaged."""
    return None if _native is None else _native.plain_size(data)


def add_restarts(data: bytes) -> bytes | None:
    """Adds restart markers to a JPEG without changing a coefficient; its Huffman tables become optimal ones.

    Args:
        data: a JPEG. Anything after its end marker is not copied.

    Returns:
        The new file; ``data`` itself if it has these markers already, or is too small to gain from them; None if it is
        damaged or not sequential (such as a progressive file), has more than one scan, or neither 1 nor 3 channels.
    """
    assert _native is not None, "ask available() first"
    return _native.add_restarts(data)


def cut(data: bytes, top: int, left: int, height: int, width: int) -> Cut | None:
    """The restart intervals that a box touches, as a JPEG with the same pixels there.

    Pixels near the edges of the result may differ, since chroma is interpolated between neighbours: add a margin to the
    box. Intervals that the box does not touch are not checked for damage.

    Args:
        data: a JPEG.
        top: first row of the box; the box may extend beyond the image.
        left: first column.
        height: rows.
        width: columns.

    Returns:
        None if the file has no usable markers, the markers are damaged, or the box touches nearly all intervals.
    """
    if _native is None:
        return None
    found = _native.cut(data, top, left, height, width)
    return None if found is None else Cut(*found)
