"""The methods of the order of one set that the stream calls."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class SetOrder(Protocol):
    """Maps each draw of a lane to a sample of one set, as a pure function.

    Attributes:
        num_samples: samples that may be drawn.
        global_batch_size: B, an even number.
        lanes: L.
    """

    num_samples: int
    global_batch_size: int
    lanes: int

    def at(self, lanes: IntArray, draws: IntArray) -> tuple[IntArray, IntArray]:
        """Samples and epochs of single draws: draw ``draws`` of lane ``lanes``; all arrays (b,).

        No two draws have both in common, since epoch and sample determine the augmentation.
        """
        ...

    def window_of(self, draw: int) -> tuple[int, int]:
        """First draw and length of the shuffle window around ``draw``, the same in every lane."""
        ...

    def window_samples(self, lane: int, draw: int) -> IntArray:
        """The samples of the window around ``draw`` of ``lane``."""
        ...
