"""Perceptual hashes: the signs of 63 low frequencies of a grey picture, of the complete image and of crops of it.

A sign is that of a coefficient of the cosine transform against the median of all, so brightness and contrast do not
matter, nor size, aspect ratio or compression much. A mirrored picture has the same coefficients with the sign of every
odd column flipped, so its hash costs no second transform. Any crop is close to one of a grid of
crops, so one side of a comparison is hashed without cropping and the other as a grid, and vice versa.

Only a few low frequencies are used on purpose: they tolerate the remaining misalignment between a crop and the nearest
one of the grid. ``compare`` examines the candidates that pass.

Legend: V views.
Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2 (DCT hash).
Differs: crops and mirrors; the constant coefficient is left out, since brightness is not a feature.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BASE_SIDE = 128  # the grey picture that views are cut from
VIEW_SIDE = 32
NUM_FREQUENCIES = 8
NUM_BITS = NUM_FREQUENCIES**2 - 1
FLAT = 4.0  # below this standard deviation of grey values, pictures cannot be told apart
_MIRROR = np.where(np.arange(NUM_FREQUENCIES) % 2 == 1, -1.0, 1.0).astype(np.float32)

Picture = NDArray[np.uint8]


class View(NamedTuple):
    """A crop as shares of height and width."""

    top: float
    left: float
    bottom: float
    right: float


WHOLE = View(0.0, 0.0, 1.0, 1.0)


def crops(sides: tuple[float, ...], places: int) -> tuple[View, ...]:
    """For every side (a share of the image's), crops at ``places`` × ``places`` evenly spread places."""
    views = []
    for side in sides:
        for top in np.linspace(0, 1 - side, places):
            for left in np.linspace(0, 1 - side, places):
                views.append(View(float(top), float(left), float(top) + side, float(left) + side))
    return tuple(views)


VIEWS = (WHOLE, *crops((0.9, 0.8, 0.7, 0.62), 4))  # of the smaller set, the test set
COARSE_VIEWS = (WHOLE, *crops((0.9, 0.8, 0.7), 3))  # of the larger set


def grey_picture(pixels: NDArray[np.uint8]) -> Picture:
    """RGB uint8 (h, w, 3) → grey uint8 (128, 128), squashed."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (BASE_SIDE, BASE_SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def is_flat(picture: Picture) -> bool:
    """The picture has nearly one grey value: all flat pictures look the same."""
    return float(picture.std()) < FLAT


def hash_views(picture: Picture, views: tuple[View, ...] = VIEWS, *, mirrored: bool = False) -> NDArray[np.uint64]:
    """Hashes of views, uint64 (V,); with ``mirrored`` (2 V,), followed by those of the mirrored views."""
    height, width = picture.shape
    blocks = np.empty((len(views), NUM_FREQUENCIES, NUM_FREQUENCIES), dtype=np.float32)
    for index, view in enumerate(views):
        rows = slice(round(view.top * height), round(view.bottom * height))
        columns = slice(round(view.left * width), round(view.right * width))
        small = cv2.resize(picture[rows, columns], (VIEW_SIDE, VIEW_SIDE), interpolation=cv2.INTER_AREA)
        blocks[index] = cv2.dct(small.astype(np.float32))[:NUM_FREQUENCIES, :NUM_FREQUENCIES]
    if mirrored:
        blocks = np.concatenate([blocks, blocks * _MIRROR])
    flat = blocks.reshape(len(blocks), -1)[:, 1:]
    signs = flat > np.median(flat, axis=1, keepdims=True)
    padded = np.concatenate([signs, np.zeros((len(signs), 1), dtype=bool)], axis=1)
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")[:, 0].astype(np.uint64)


def distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bits in which hashes differ."""
    return _count(left ^ right)


def _count(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    bits = np.unpackbits(np.ascontiguousarray(words)[..., None].view(np.uint8), axis=-1)  # numpy 1
    return bits.sum(axis=-1, dtype=np.uint8)
