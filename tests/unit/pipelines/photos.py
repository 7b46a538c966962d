"""Folders of small images, as a user has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def encode(seed: int, image_format: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format)
    return buffer.getvalue()


def write_photos(root: Path, classes: dict[str, int], image_format: str = "JPEG") -> Path:
    """``classes``: folder → number of images in it."""
    seed = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            suffix = {"JPEG": ".jpg", "PNG": ".png"}[image_format]
            (root / name / f"{index:03d}{suffix}").write_bytes(encode(seed, image_format))
            seed += 1
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tiles(height: int = 213, width: int = 213) -> list[Image.Image]:
    """Photos of real things, all different: tiles of the two large ones that come with scikit-learn."""
    cut = []
    for pixels in load_sample_images().images:  # pyright: ignore[reportAttributeAccessIssue]
        for top in range(0, pixels.shape[0] - height + 1, height):
            for left in range(0, pixels.shape[1] - width + 1, width):
                cut.append(Image.fromarray(np.ascontiguousarray(pixels[top : top + height, left : left + width])))
    return cut


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
