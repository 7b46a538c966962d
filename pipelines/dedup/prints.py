"""The record of every image: digest of its bytes, hashes of its views, a small grey picture. Made once per part.

About 4.4 kB per image; finished parts are not computed again.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.dedup.compare import SIDE, shrunk
from pipelines.dedup.hashes import View, grey_picture, hash_views, is_flat
from pipelines.dedup.sets import ImageSet
from pipelines.runs.pool import Progress
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample
from pretrain.files import write_atomic

VERSION = 2


@dataclass(frozen=True)
class Prints:
    """Arrays over the n images of a part.

    Attributes:
        content: uint64 (n, 2), digest of the bytes.
        hashes: uint64 (n, V); 0 for flat images.
        pictures: uint8 (n, 64, 64).
        usable: bool (n,), the image could be decoded and is not flat.
        readable: bool (n,), the image could be decoded.
    """

    content: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    pictures: NDArray[np.uint8]
    usable: NDArray[np.bool_]
    readable: NDArray[np.bool_]

    @classmethod
    def load(cls, path: Path) -> Prints:
        """Reads a part."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


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
    usable, readable = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for index, data in enumerate(job.images.images(part)):
        progress(1)
        # an unreadable file matches no other
        named = f"unreadable {job.images.digest} {part} {index}".encode() if data is None else data
        content[index] = np.frombuffer(hashlib.blake2b(named, digest_size=16).digest(), dtype="<u8")
        try:
            picture = grey_picture(open_image(data or b"").decode(256, 256))
        except BadSample:
            continue
        readable[index] = True
        pictures[index] = shrunk(picture)
        usable[index] = not is_flat(picture)
        if usable[index]:
            hashes[index] = hash_views(picture, job.views, mirrored=job.mirrored)
    buffer = io.BytesIO()
    np.savez(buffer, content=content, hashes=hashes, pictures=pictures, usable=usable, readable=readable)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
