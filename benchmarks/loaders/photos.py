"""The photos of the loader's benchmark: JPEGs with ImageNet's statistics, small and large ones, or a folder of JPEGs.

The made ones are pieces of scikit-learn's two sample photos, turned, mirrored and resized. Their sizes, subsampling and
bytes per pixel are those of the data that they stand for; the noise is that of a camera, which a scaled photo lacks.
"""

from __future__ import annotations

import io
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

CAP, QUALITY = 256, 90
SUBSAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}
_FULL_COLOUR = 10  # one photo in ten is 4:4:4


@dataclass(frozen=True)
class Kind:
    """Photos to make.

    Attributes:
        sides: (width, height), taken in turn.
        quality: of the JPEGs.
        noise: standard deviation, in grey levels.
        most: photos at most.
    """

    sides: tuple[tuple[int, int], ...]
    quality: int
    noise: float
    most: int = 1000


# imagenet: the most frequent sizes of ILSVRC-2012's training set; its photos have 107 KiB on average
KINDS = {
    "imagenet": Kind(((500, 375), (500, 375), (500, 333), (500, 375), (375, 500), (500, 375)), 96, 3.5),
    "small": Kind(((400, 300), (400, 300), (300, 400)), 82, 0.0),
    "large": Kind(((4000, 3000),), 90, 3.0, most=64),
}


def made(kind: Kind, limit: int) -> Iterator[bytes]:
    """JPEGs of a kind, the same ones in every run."""
    import sklearn.datasets

    files = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    samples = [Image.open(path).convert("RGB") for path in files]
    rng = np.random.default_rng(0)
    for number in range(min(limit, kind.most)):
        width, height = kind.sides[number % len(kind.sides)]
        sample = samples[number % len(samples)]
        if height > width:
            sample = sample.transpose(Image.Transpose.ROTATE_90)
        scale = min(sample.width / width, sample.height / height) * rng.uniform(0.8, 1)
        piece_width, piece_height = int(width * scale), int(height * scale)
        left = int(rng.integers(sample.width - piece_width + 1))
        top = int(rng.integers(sample.height - piece_height + 1))
        box = (left, top, left + piece_width, top + piece_height)
        pixels = np.asarray(sample.resize((width, height), Image.Resampling.LANCZOS, box=box), dtype=np.float32)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        noisy = pixels + kind.noise * rng.standard_normal(pixels.shape, dtype=np.float32)
        image = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        yield _encoded(image, kind.quality, "4:4:4" if number % _FULL_COLOUR == 0 else "4:2:0")


def of_folder(folder: Path, limit: int) -> list[bytes]:
    """The JPEGs below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        sys.exit(f"error: {folder}: no .jpg files below it")
    return [path.read_bytes() for path in files[:limit]]


def capped(data: bytes) -> bytes:
    """The photo with a short side of at most 256 px, encoded again."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = CAP / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _encoded(image, QUALITY, "4:2:0")


def described(photos: Sequence[bytes]) -> str:
    """Statistics of photos in words: how many, their pixels and bytes, and how they are coded."""
    images = [Image.open(io.BytesIO(data)) for data in photos]
    width, height = (round(statistics.median(sides)) for sides in zip(*(image.size for image in images), strict=True))
    pixels = statistics.mean(image.width * image.height for image in images)
    size = statistics.mean(map(len, photos))
    kinds = Counter(_coding(image) for image in images)
    shares = ", ".join(f"{count / len(images):.0%} {kind}" for kind, count in kinds.most_common(3))
    return (
        f"{len(photos):,} photos, {width}×{height} pixels (median), {size / 1024:,.0f} KiB on average "
        f"({8 * size / pixels:.1f} bits a pixel), {shares}"
    )


def _coding(image: Image.Image) -> str:
    layers = getattr(image, "layer", [])
    factors = tuple(layers[0][1:3]) if len(layers) == 3 else ()
    name = SUBSAMPLINGS.get(factors, image.mode) if factors else image.mode
    return f"{name} progressive" if image.info.get("progressive") else name


def _encoded(image: Image.Image, quality: int, subsampling: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()
