"""Adds restart markers to a JPEG that is packed, so that training decodes only the part that a crop needs.

The coefficients stay the same, and every pixel of the new file is compared with the old one's before it is packed. A
progressive file is first converted to a sequential one, losslessly: it would decode more slowly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg

from pretrain.data.images import restarts, turbojpeg
from pretrain.data.images.containers import read_jpeg_coding

# Counted in the card, among the changes.
ADDED, MADE_SEQUENTIAL = "restart markers added", "progressive made sequential"
# Counted in the ledger, for each JPEG.
MARKED, SMALL = "marked for partial decoding", "left unmarked, being too small to gain"
NOT_BUILT = "left unmarked, since the C extension is not installed"
NOT_POSSIBLE = "left unmarked, being of an unusual kind"
DIFFERENT = "left unmarked, since a pixel would change"


class Marked(NamedTuple):
    """A JPEG to pack.

    Attributes:
        data: with markers, or as it was.
        outcome: for the ledger.
        changes: for the card.
    """

    data: bytes
    outcome: str
    changes: tuple[str, ...] = ()


def with_markers(data: bytes) -> Marked:
    """Adds restart markers to a JPEG where that is possible without changing a pixel."""
    changes: list[str] = []
    sequential = data
    if read_jpeg_coding(data).is_progressive:
        made = turbojpeg.made_sequential(data)
        if made is None:
            return Marked(data, NOT_POSSIBLE)
        sequential = made
        changes.append(MADE_SEQUENTIAL)
    marked, outcome = _marked(sequential)
    if marked is not sequential:
        changes.append(ADDED)
    if marked is not data and not _have_equal_pixels(marked, data):
        return Marked(data, DIFFERENT)
    return Marked(marked, outcome, tuple(changes))


def _marked(data: bytes) -> tuple[bytes, str]:
    if not restarts.available():
        return data, NOT_BUILT
    marked = restarts.add_restarts(data)
    if marked is None:
        return data, NOT_POSSIBLE
    return marked, MARKED if read_jpeg_coding(marked).restart_interval else SMALL


def _have_equal_pixels(one: bytes, other: bytes) -> bool:
    try:
        first, second = (simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True) for data in (one, other))
    except ValueError:  # libjpeg warns about it: the pixels depend on the reader
        return False
    return np.array_equal(first, second)
