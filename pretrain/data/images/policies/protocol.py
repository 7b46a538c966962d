"""What a policy is: a change of one image's pixels that its row of uniform numbers decides."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float64]


class Policy(Protocol):
    """Must pickle, and must draw from no generator."""

    @property
    def num_numbers(self) -> int:
        """How many uniform numbers an image needs."""
        ...

    def __call__(self, pixels: Pixels, numbers: Numbers) -> Pixels:
        """The changed image.

        Args:
            pixels: uint8 (H, W, 3); not written to.
            numbers: (num_numbers,) in [0, 1).
        """
        ...
