"""The print of every image: a digest of its pixels, hashes of its views, a small grey picture, and its colours.

A print takes about 4.9 kB. Prints are made once per part of a set; finished parts are not computed again.

A hash holds the signs of 63 low frequencies of a grey picture, of the complete image or of a crop of it.
A sign is that of a coefficient of the cosine transform against the median of all, so brightness and contrast do not
matter, nor size, aspect ratio or compression much. A mirrored picture has the same coefficients with the sign of every
odd column flipped, so its hash costs no second transform. Any crop is close to one of a grid of
crops, so one side of a comparison is hashed without cropping and the other as a grid, and vice versa.

Only a few low frequencies are used on purpose: they tolerate the remaining misalignment between a crop and the nearest
one of the grid. ``matching`` examines the candidates that pass.

Legend: V views.
Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2 (DCT hash).
Differs: crops and mirrors; the constant coefficient is left out, since brightness is not a feature.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.sets import ImageSet
from pipelines.runs.processes import Progress
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample
from pretrain.files import write_atomic

BASE_SIDE = 128  # the grey picture that views are cut from
VIEW_SIDE = 32
SIDE = 64  # of the pictures that are stored and compared
COLOUR_SIDE = 16
NUM_FREQUENCIES = 8
NUM_BITS = NUM_FREQUENCIES**2 - 1
FLAT = 4.0  # below this standard deviation of grey values, pictures cannot be told apart
_MIRROR = np.where(np.arange(NUM_FREQUENCIES) % 2 == 1, -1.0, 1.0).astype(np.float32)
VERSION = 4  # of the files

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


def shrunk(picture: Picture) -> Picture:
    """Resizes a picture to the size at which pictures are stored and compared."""
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def colours_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB uint8 (h, w, 3) → Cr and Cb, uint8 (16, 16, 2), squashed; grey is 128."""
    small = cv2.resize(np.ascontiguousarray(pixels), (COLOUR_SIDE, COLOUR_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb)[:, :, 1:], dtype=np.uint8)


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


class Thumbnail(NamedTuple):
    """A small picture: its grey values, uint8 (64, 64), and its colours, uint8 (16, 16, 2)."""

    grey: Picture
    colours: NDArray[np.uint8]


@dataclass(frozen=True)
class Prints:
    """Arrays over the n images of a part.

    Attributes:
        content: uint64 (n, 2), digest of the pixels as decoded here (large JPEGs at a reduced scale), which are equal
            with and without restart markers; of the bytes of a file that cannot be decoded.
        hashes: uint64 (n, V); 0 for flat images.
        pictures: uint8 (n, 64, 64).
        colours: uint8 (n, 16, 16, 2); see ``colours_of``.
        usable: bool (n,), the image could be decoded and is not flat.
        readable: bool (n,), the image could be decoded.
    """

    content: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    pictures: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    usable: NDArray[np.bool_]
    readable: NDArray[np.bool_]

    @classmethod
    def load(cls, path: Path) -> Prints:
        """Reads a part."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    def thumbnail(self, index: int) -> Thumbnail:
        """The small picture of one image."""
        return Thumbnail(self.pictures[index], self.colours[index])


@dataclass(frozen=True)
class PrintJob:
    """The arguments that the parts of a set share."""

    images: ImageSet
    folder: Path
    views: tuple[View, ...]
    mirrored: bool

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.images.digest}-{len(self.views)}-{VERSION}" / f"{part:06d}.npz"


def make_prints(job: PrintJob, part: int, progress: Progress) -> None:
    """Makes the file of one part unless it is there."""
    path, size = job.path(part), job.images.sizes[part]
    if path.is_file():
        progress(size)
        return
    content = np.zeros((size, 2), dtype=np.uint64)
    hashes = np.zeros((size, len(job.views) * (2 if job.mirrored else 1)), dtype=np.uint64)
    pictures = np.zeros((size, SIDE, SIDE), dtype=np.uint8)
    colours = np.zeros((size, COLOUR_SIDE, COLOUR_SIDE, 2), dtype=np.uint8)
    usable, readable = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for index, data in enumerate(job.images.images(part)):
        progress(1)
        try:
            pixels = open_image(data or b"").decode(256, 256)
        except BadSample:
            # a file that cannot even be read matches no other
            content[index] = _digest(
                f"unreadable {job.images.digest} {part} {index}".encode() if data is None else data
            )
            continue
        content[index] = _digest(np.ascontiguousarray(pixels), str(pixels.shape).encode())
        picture = grey_picture(pixels)
        readable[index] = True
        pictures[index], colours[index] = shrunk(picture), colours_of(pixels)
        usable[index] = not is_flat(picture)
        if usable[index]:
            hashes[index] = hash_views(picture, job.views, mirrored=job.mirrored)
    buffer = io.BytesIO()
    made = Prints(content, hashes, pictures, colours, usable, readable)
    np.savez(buffer, **vars(made))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _digest(content: bytes | NDArray[np.uint8], shape: bytes = b"") -> NDArray[np.uint64]:
    hashed = hashlib.blake2b(shape, digest_size=16)
    hashed.update(content)
    return np.frombuffer(hashed.digest(), dtype="<u8")
