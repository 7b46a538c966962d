"""Batches that the recorded loss curves were trained on, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BATCH, CLASSES, SIDE, STEPS = 8, 5, 32, 30
_DISTINCT = 3  # few, so that the loss falls


def batch_of(step: int, *, one_hot: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images in [−1, 1], (BATCH, SIDE, SIDE, 3), and their labels, (BATCH, CLASSES): one of each, or any number."""
    random = np.random.RandomState(step % _DISTINCT)  # its stream is frozen
    images = random.uniform(-1, 1, (BATCH, SIDE, SIDE, 3)).astype(np.float32)
    if one_hot:
        return images, np.eye(CLASSES, dtype=np.float32)[random.randint(CLASSES, size=BATCH)]
    return images, (random.uniform(size=(BATCH, CLASSES)) < 0.4).astype(np.float32)


def pictures_of(step: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """8-bit images, (BATCH, SIDE, SIDE, 3), and the class of each, (BATCH,)."""
    random = np.random.RandomState(100 + step % _DISTINCT)
    images = random.randint(256, size=(BATCH, SIDE, SIDE, 3)).astype(np.uint8)
    return images, random.randint(CLASSES, size=BATCH).astype(np.int64)
