"""The interface of policies. A policy changes one image's pixels, as a function of a row of uniform numbers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]


class Policy(Protocol):
    """Must be picklable, and must not use a random generator."""

    @property
    def num_numbers(self) -> int:
        """Number of uniform numbers per image."""
        ...

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """The changed image.

        Args:
            pixels: uint8 (H, W, 3); not written to.
            numbers: (num_numbers,) in [0, 1).
        """
        ...
