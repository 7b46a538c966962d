"""Weights of classes from the numbers of their images.

Legend: K classes · N images · n images of a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pretrain.config.schema.objective import ClassWeights
from pretrain.errors import ConfigError


@dataclass(frozen=True)
class ClassCounts:
    """Images of each class in the training set, and images altogether."""

    of_classes: tuple[int, ...]
    num_samples: int


def by_class(counts: ClassCounts, count: int) -> float:
    """N / (K n). Source: scikit-learn, ``compute_class_weight("balanced")``."""
    return counts.num_samples / (len(counts.of_classes) * count)


def absent_to_present(counts: ClassCounts, count: int) -> float:
    """(N − n) / n. Source: torch, BCEWithLogitsLoss, on ``pos_weight``."""
    return (counts.num_samples - count) / count


def weights_of(
    key: str,
    weights: ClassWeights | None,
    counts: ClassCounts | None,
    balance: Callable[[ClassCounts, int], float],
) -> tuple[float, ...] | None:
    """The weight of each class; None: all weigh the same.

    Args:
        key: of the setting, for messages.
        weights: its value.
        counts: of the training set, if they are known.
        balance: (counts, n) → the weight of a class of n images, for ``balanced``.

    Raises:
        ConfigError: a class has no weight because no image has it, or every image.
    """
    if not isinstance(weights, str):
        return weights
    if counts is None or not counts.of_classes:
        raise ConfigError(f"objective.{key}: balanced needs the numbers of images on the set's card; give a list")
    _refuse(key, "no image", [index for index, n in enumerate(counts.of_classes) if not n])
    found = tuple(balance(counts, n) for n in counts.of_classes)
    _refuse(key, "every image", [index for index, weight in enumerate(found) if not weight])
    return found


def _refuse(key: str, images: str, classes: Sequence[int]) -> None:
    if classes:
        raise ConfigError(
            f"objective.{key}: balanced has no weight for a class of {images}, such as class {classes[0]} "
            f"({len(classes)} in all); give a list of weights, or pack the set without it"
        )
