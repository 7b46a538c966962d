"""Vectors instead of labels, such as the targets of a regression: parsing, mean and deviation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.label_values import short
from pretrain.errors import DataError

TARGET_KEY = "target"  # in KEY.json of a tar


def to_vector(value: Any, where: str) -> tuple[float, ...]:
    """A number or a list of numbers as a vector.

    Raises:
        DataError: it is neither, is empty, or a number is not finite.
    """
    try:
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = tuple(float(number) for number in values if not isinstance(number, bool))
        numbers = numbers if len(numbers) == len(values) else ()
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise DataError(
            f"{where}: the target {short(value)} is not a list of finite numbers, at least one; correct or remove it"
        )
    return numbers


class VectorLength:
    """Checks that all vectors of a source have the same length."""

    def __init__(self) -> None:
        self._length: int | None = None

    @property
    def length(self) -> int:
        """The length of each; 0 if no sample has a vector."""
        return self._length or 0

    def check(self, vector: tuple[float, ...], where: str) -> tuple[float, ...]:
        """The vector itself.

        Raises:
            DataError: it is longer or shorter than the first.
        """
        if self._length is None:
            self._length = len(vector)
        if len(vector) != self._length:
            raise DataError(
                f"{where}: a target of {len(vector)} numbers, those before it have {self._length}; a set has targets "
                "of one length, or labels in all their places"
            )
        return vector

    @property
    def classes(self) -> list[tuple[str, str]]:
        """(id, name) of the numbers if they have no names."""
        return [(str(index), str(index)) for index in range(self.length)]


class Moments:
    """Mean and population standard deviation of numbers that come in parts; float64 (D,), or empty without any.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self._count, self.mean, self._squares = 0, np.zeros(0), np.zeros(0)

    @property
    def std(self) -> NDArray[np.float64]:
        """Over all rows so far."""
        return np.sqrt(self._squares / max(self._count, 1))

    def merge(self, other: Moments) -> None:
        """Adds the rows of another instance."""
        self._take(other._count, other.mean, other._squares)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Adds rows (n, D)."""
        mean = rows.mean(axis=0)
        self._take(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))

    def _take(self, count: int, mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
        if not count:
            return
        if not self._count:
            self._count, self.mean, self._squares = count, mean, squares
            return
        total, shift = self._count + count, mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self._squares = self._squares + squares + shift**2 * (self._count * count / total)
        self._count = total
