"""scikit-learn's handwritten digits on larger canvases: real strokes whose place is known exactly.

``position``: one digit on a canvas, and where its centre is. ``mask``: two digits that may touch, and what each pixel
shows: background, or which digit. The digits of val are others than those of train.
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
DIGIT = {"position": 16, "mask": 24}  # pixels of a digit on it: twice its own, or three times
NUM_CANVASES = {"train": 2000, "val": 500}
FIRST_OF_VAL = 1400  # of the 1,797 digits
INK = 96  # of 255: from this on a pixel belongs to a digit
NUM_DIGITS = {"position": 1, "mask": 2}
Answer = Literal["position", "mask"]


class DigitCanvasSource(Source):
    """Canvases of 48×48 pixels with digits of 16×16 (for masks 24×24); canvas k is a function of k.

    Args:
        answer: what is asked of them; "position": x and y of the centre of the only digit, in pixels; "mask": classes
            of the pixels, 0 for the background and d + 1 for the digit d; where two overlap, the brighter one counts.
    """

    origin = "sklearn.datasets.load_digits (UCI ML hand-written digits, test part), put on canvases"
    licence = DigitsSource.licence
    homepage = DigitsSource.homepage
    images = "keep"  # made here, as they should be

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.name = f"digit canvases, {answer}"
        self.side = DIGIT[answer]
        self.target = "vector" if answer == "position" else "mask"
        self.classes = [("x", "x"), ("y", "y")]
        if answer == "mask":
            self.classes = [("background", "background"), *((str(digit), str(digit)) for digit in range(10))]
        self.notes: list[str] = []

    @cached_property
    def _digits(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return DigitsSource().arrays

    def items(self) -> list[Item]:
        """See ``Source.items``."""
        return [self._item(split, number) for split, count in NUM_CANVASES.items() for number in range(count)]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        return encode_grey(self._canvas(item.key)[0]), "png"

    def read_mask(self, item: Item) -> bytes:
        """See ``Source.read_mask``."""
        return encode_grey(self._canvas(item.key)[1])

    def _canvas(self, key: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The picture and the mask, uint8 (48, 48)."""
        images, shown = self._digits
        canvas, mask = np.zeros((2, SIDE, SIDE), dtype=np.uint8)
        for digit, top, left in self._drawn(key):
            window = (slice(top, top + self.side), slice(left, left + self.side))
            ink = enlarged(images[digit], self.side)
            brighter = ink > canvas[window]
            mask[window][brighter & (ink >= INK)] = shown[digit] + 1
            canvas[window][brighter] = ink[brighter]
        return canvas, mask

    def _item(self, split: str, number: int) -> Item:
        key = f"{split}-{number:05d}"
        if self.answer == "mask":
            return Item(key, (), 2 * SIDE * SIDE, split, mask=key)
        ((_, top, left),) = self._drawn(key)
        return Item(key, (), SIDE * SIDE, split, vector=(left + self.side / 2, top + self.side / 2))

    def _drawn(self, key: str) -> list[tuple[int, int, int]]:
        """(digit, top, left) of what is on a canvas."""
        draws = seeds.uniform("digit_canvas", self.answer, key, np.arange(3 * NUM_DIGITS[self.answer])).reshape(-1, 3)
        first, end = (FIRST_OF_VAL, len(self._digits[0])) if key.startswith("val") else (0, FIRST_OF_VAL)
        places = SIDE - self.side + 1
        return [
            (first + int(which * (end - first)), int(top * places), int(left * places)) for which, top, left in draws
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_digits"}


def enlarged(digit: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A digit of 8×8 pixels at its size on a canvas."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))
