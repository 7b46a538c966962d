"""scikit-learn's handwritten digits: 1,797 real grey images of 8×8 pixels, inside the wheel."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.png import encode_grey
from pipelines.sources.protocol import Item, Source
from pretrain.errors import SetupError

LARGEST_VALUE = 16.0


class DigitsSource(Source):
    """Digits 0 … 9 as lossless grey PNGs of their own 8×8 pixels."""

    name = "digits"
    origin = "sklearn.datasets.load_digits (UCI ML hand-written digits, test part)"
    licence = "CC BY 4.0"
    homepage = "https://archive.ics.uci.edu/dataset/80"
    images = "keep"  # made here, as they should be

    def __init__(self) -> None:
        self.classes = [(str(digit), str(digit)) for digit in range(10)]
        self.notes: list[str] = []

    @cached_property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (1797, 8, 8) and what they show."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise SetupError(
                "the source digits needs scikit-learn; install it with: pip install scikit-learn"
            ) from error
        bunch: Any = load_digits()
        return np.rint(bunch.images * (255 / LARGEST_VALUE)).astype(np.uint8), bunch.target

    def items(self) -> list[Item]:
        """See ``Source.items``."""
        images, targets = self.arrays
        return [Item(f"digit-{number:04d}", (int(label),), images[0].size) for number, label in enumerate(targets)]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return encode_grey(self.arrays[0][int(item.key.removeprefix("digit-"))]), "png"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "arrays"}
