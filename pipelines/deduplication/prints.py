"""What is kept of every image: digest of its bytes, hashes of its views, a small grey picture. Made once per part.

About 4.4 kB an image; a part that was finished is not made again.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.deduplication.compare import SIDE, shrunk
from pipelines.deduplication.hashes import View, grey_picture, hash_views, is_flat
from pipelines.deduplication.sets import ImageSet
from pipelines.packing.pool import Progress
from pretrain.data.decode import open_image
from pretrain.data.faults import BadSample
from pretrain.files import write_atomic

VERSION = 1


@dataclass(frozen=True)
class Prints:
    """Arrays over the n images of a part.

    Attributes:
        content: uint64 (n, 2), digest of the bytes.
        hashes: uint64 (n, V); 0 where an image shows too little.
        pictures: uint8 (n, 64, 64).
        usable: bool (n,), the image could be decoded and is not flat.
    """

    content: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    pictures: NDArray[np.uint8]
    usable: NDArray[np.bool_]

    @classmethod
    def load(cls, path: Path) -> Prints:
        """Reads a part."""
        with np.load(path) as arrays:
            return cls(arrays["content"], arrays["hashes"], arrays["pictures"], arrays["usable"])


@dataclass(frozen=True)
class PrintJob:
    """What the parts of a set share."""

    images: ImageSet
    folder: Path
    views: tuple[View, ...]
    mirrored: bool

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"{self.images.digest}-{len(self.views)}-{VERSION}" / f"{part:06d}.npz"


def make_prints(job: PrintJob, part: int, progress: Progress) -> int:
    """Makes the file of one part unless it is there; returns how many images could not be decoded."""
    path = job.path(part)
    num_bad = 0
    if not path.is_file():
        size = job.images.sizes[part]
        content = np.zeros((size, 2), dtype=np.uint64)
        hashes = np.zeros((size, len(job.views) * (2 if job.mirrored else 1)), dtype=np.uint64)
        pictures = np.zeros((size, SIDE, SIDE), dtype=np.uint8)
        usable = np.zeros(size, dtype=bool)
        for index, data in enumerate(job.images.images(part)):
            content[index] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype="<u8")
            try:
                encoded = open_image(data)
                picture = grey_picture(encoded.decode(256, 256))
            except BadSample:
                num_bad += 1
                progress(1)
                continue
            pictures[index] = shrunk(picture)
            usable[index] = not is_flat(picture)
            if usable[index]:
                hashes[index] = hash_views(picture, job.views, mirrored=job.mirrored)
            progress(1)
        buffer = io.BytesIO()
        np.savez(buffer, content=content, hashes=hashes, pictures=pictures, usable=usable)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    return num_bad
