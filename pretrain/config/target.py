"""What a sample carries beside its image: one kind of target for all samples of a set. No torch."""

from __future__ import annotations

from typing import Literal

Target = Literal["labels", "vector", "mask"]

IN_WORDS: dict[Target, str] = {
    "labels": "class labels",
    "vector": "vectors of numbers",
    "mask": "segmentation masks",
}
IGNORED_PIXEL = 255  # in a mask: the pixel has no class and does not count
LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse"})  # of the metrics by which a best model is chosen
