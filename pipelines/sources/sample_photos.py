"""Real photos without a network: pieces of the two that scikit-learn ships, for measurements of speed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 375, 500  # ImageNet's average
NAMES = ("china", "flower")  # one class each


def write_photos(folder: Path, count: int) -> None:
    """Writes JPEGs into one folder per class, of which a few hundred differ from each other.

    Args:
        folder: where; what is there is removed.
        count: number of photos, divided evenly among the classes.
    """
    if folder.exists():
        shutil.rmtree(folder)
    generator = np.random.default_rng(0)
    for name, pixels in zip(NAMES, load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(count // 2):
            share = generator.uniform(0.5, 1.0)
            rows, columns = int(share * pixels.shape[0]), int(share * pixels.shape[1])
            top = generator.integers(pixels.shape[0] - rows + 1)
            left = generator.integers(pixels.shape[1] - columns + 1)
            cut = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows, left : left + columns]))
            cut.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / name / f"{index:04d}.jpg", quality=90)
