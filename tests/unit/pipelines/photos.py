"""Folders of small images, as a user has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


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
