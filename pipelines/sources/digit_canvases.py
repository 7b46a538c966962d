"""scikit-learn's handwritten digits on larger canvases: real strokes whose place is known exactly.

``position``: one digit on a canvas, and where its centre is. The digits of val are others than those of train.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.sources.digits import DigitsSource
from pipelines.sources.png import encode_grey
from pipelines.sources.protocol import Item, Source
from pretrain import seeds

SIDE = 48  # pixels of a canvas
DIGIT = 16  # pixels of a digit on it: twice its own
NUM_CANVASES = {"train": 2000, "val": 500}
FIRST_OF_VAL = 1400  # of the 1,797 digits
Answer = Literal["position"]


class DigitCanvasSource(Source):
    """Canvases of 48×48 pixels with digits of 16×16; canvas k is a function of k.

    Args:
        answer: what is asked of them; "position": x and y of the centre of the only digit, in pixels.
    """

    origin = "sklearn.datasets.load_digits (UCI ML hand-written digits, test part), put on canvases"
    licence = DigitsSource.licence
    homepage = DigitsSource.homepage
    images = "keep"  # made here, as they should be

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.name = f"digit canvases, {answer}"
        self.target = "vector"
        self.classes = [("x", "x"), ("y", "y")]
        self.notes: list[str] = []

    @cached_property
    def _digits(self) -> NDArray[np.uint8]:
        return DigitsSource().arrays[0]

    def items(self) -> list[Item]:
        """See ``Source.items``."""
        return [self._item(split, number) for split, count in NUM_CANVASES.items() for number in range(count)]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
        for digit, top, left in self._drawn(item.key):
            canvas[top : top + DIGIT, left : left + DIGIT] = enlarged(self._digits[digit])
        return encode_grey(canvas), "png"

    def _item(self, split: str, number: int) -> Item:
        key = f"{split}-{number:05d}"
        ((_, top, left),) = self._drawn(key)
        return Item(key, (), SIDE * SIDE, split, vector=(left + DIGIT / 2, top + DIGIT / 2))

    def _drawn(self, key: str) -> list[tuple[int, int, int]]:
        """(digit, top, left) of what is on a canvas."""
        draw = seeds.uniform("digit_canvas", self.answer, key, np.arange(3))
        first, end = (FIRST_OF_VAL, len(self._digits)) if key.startswith("val") else (0, FIRST_OF_VAL)
        places = SIDE - DIGIT + 1
        return [(first + int(draw[0] * (end - first)), int(draw[1] * places), int(draw[2] * places))]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_digits"}


def enlarged(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A digit of 8×8 pixels at its size on a canvas."""
    return np.asarray(Image.fromarray(digit).resize((DIGIT, DIGIT), Image.Resampling.BICUBIC))
