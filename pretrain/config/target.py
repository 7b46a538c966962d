"""What a sample carries beside its image: one kind for a whole set, and what wants which kind. No torch."""

from __future__ import annotations

from typing import Literal

Target = Literal["labels", "vector", "mask"]

IN_WORDS: dict[Target, str] = {
    "labels": "class labels",
    "vector": "vectors of numbers",
    "mask": "segmentation masks",
}
# Objectives and kinds of evaluation of these names want such a set; all others want labels, or look at images alone.
WANTED: dict[str, Target] = {"regression": "vector", "segmentation": "mask"}
IGNORED_PIXEL = 255  # of a mask: it has no class and does not count
LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse"})  # of the metrics that a best one is chosen by


def wanted_by(name: str) -> Target | None:
    """The kind of target that an objective, or a kind of evaluation, needs; None: it takes any set."""
    return None if name == "masked_patches" else WANTED.get(name, "labels")


def makers_of(target: Target) -> str:
    """The objectives, or kinds of evaluation, that want such a set, in words: for messages."""
    return next((name for name, wanted in WANTED.items() if wanted == target), "one of those for labels")
