"""Mean and spread of numbers that come in parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
        """Takes what another has seen."""
        self._take(other._count, other.mean, other._squares)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Takes (n, D)."""
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
