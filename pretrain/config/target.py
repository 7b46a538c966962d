"""The target of a sample: one kind for all samples of a set. Does not import torch."""

from __future__ import annotations

from typing import Literal

Target = Literal["labels", "vector", "mask"]

IN_WORDS: dict[Target, str] = {
    "labels": "class labels",
    "vector": "vectors of numbers",
    "mask": "segmentation masks",
}
IGNORED_PIXEL = 255  # in a mask: the pixel has no class and does not count
LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse"})  # among the metrics that select a best model
