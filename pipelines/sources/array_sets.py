"""Small sets that are arrays of grey pixels; each image becomes a lossless PNG.

``digits``: scikit-learn's handwritten digits, 1,797 real images of 8×8 pixels, inside its wheel.

``digit-canvases``: the same digits on larger canvases, real strokes whose position is known exactly. ``position``:
one digit on a canvas, and the position of its centre. ``mask``: two digits that may touch, and the class of each pixel:
background, or which digit. Train and val use different digits.

``fashion-mnist``: 60,000 + 10,000 images of 28×28 pixels of clothes, 10 classes. Source: Xiao, Rasul and Vollgraf,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017. The file format is LeCun's
IDX: two zero bytes, type 0x08 (uint8), number of axes, the axes as big-endian uint32.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.sources.protocol import Item, Source
from pretrain import seeds
from pretrain.errors import DataError, SetupError

LARGEST_VALUE = 16.0
SIDE = 48  # pixels of a canvas
DIGIT = {"position": 16, "mask": 24}  # pixels of a digit on it: twice its own, or three times
NUM_CANVASES = {"train": 2000, "val": 500}
FIRST_OF_VAL = 1400  # of the 1,797 digits
INK = 96  # of 255: a pixel at or above this belongs to a digit
NUM_DIGITS = {"position": 1, "mask": 2}
Answer = Literal["position", "mask"]
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "test": "t10k"}
NAMES = (
    "t-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_UINT8 = 0x08


def encode_grey(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless grey PNG of uint8 (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


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
        """Images (1797, 8, 8) and their digits."""
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


class DigitCanvasSource(Source):
    """Canvases of 48×48 pixels with digits of 16×16 (for masks 24×24); canvas k is a function of k.

    Args:
        answer: the target; "position": x and y of the centre of the only digit, in pixels; "mask": classes
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
        """(digit, top, left) of the digits on a canvas."""
        draws = seeds.uniform("digit_canvas", self.answer, key, np.arange(3 * NUM_DIGITS[self.answer])).reshape(-1, 3)
        first, end = (FIRST_OF_VAL, len(self._digits[0])) if key.startswith("val") else (0, FIRST_OF_VAL)
        places = SIDE - self.side + 1
        return [
            (first + int(which * (end - first)), int(top * places), int(left * places)) for which, top, left in draws
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_digits"}


def enlarged(digit: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A digit of 8×8 pixels enlarged to its size on a canvas."""
    return np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC))


class FashionMnistSource(Source):
    """Images as lossless grey PNGs; splits train and test as published.

    Args:
        root: folder with the four IDX files (.gz or unpacked); None: Debian's, or else torchvision downloads them.
    """

    name = "fashion-mnist"
    licence = "MIT"
    homepage = "https://github.com/zalandoresearch/fashion-mnist"
    images = "keep"  # made here, as they should be

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.origin = "the published IDX files"
        self.classes = [(str(index), name) for index, name in enumerate(NAMES)]
        self.notes: list[str] = []

    @cached_property
    def _arrays(self) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        self.root = self.root or (DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else _download())
        arrays = {}
        for split, prefix in SPLITS.items():
            images = _read_idx(self.root, f"{prefix}-images-idx3-ubyte")
            labels = _read_idx(self.root, f"{prefix}-labels-idx1-ubyte")
            fit = images.ndim == 3 and labels.shape == images.shape[:1] and labels.max(initial=0) < len(NAMES)
            if not fit:
                raise DataError(f"{self.root}: the images and labels of {split} do not fit each other")
            arrays[split] = (images, labels)
        return arrays

    def items(self) -> list[Item]:
        """See ``Source.items``."""
        return [
            Item(f"{split}-{number:05d}", (int(label),), images[0].size, split)
            for split, (images, labels) in self._arrays.items()
            for number, label in enumerate(labels)
        ]

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        split, number = item.key.split("-")
        return encode_grey(self._arrays[split][0][int(number)]), "png"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}


def _read_idx(root: Path, name: str) -> NDArray[np.uint8]:
    path = next((root / (name + suffix) for suffix in (".gz", "") if (root / (name + suffix)).is_file()), None)
    if path is None:
        raise DataError(f"{root}/{name}[.gz] does not exist; PATH must hold the four IDX files. {_remedy()}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, num_axes = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{num_axes}I", data, 4)
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    body = data[4 + 4 * num_axes :]
    if zeros != 0 or kind != _UINT8 or len(body) != math.prod(shape):
        raise DataError(f"{path}: not a complete IDX file of bytes")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _download() -> Path:
    folder = Path.home() / ".cache" / "pretrain-sources"
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(folder), download=True)
    except Exception as error:  # no torchvision, no network, a full disk: the remedy is the same
        raise SetupError(
            f"Fashion-MNIST is not on this machine, and its download failed ({error}). {_remedy()}"
        ) from error
    return folder / "FashionMNIST" / "raw"


def _remedy() -> str:
    return f"Install it with: sudo apt-get install dataset-fashion-mnist (puts it into {DEBIAN_FOLDER})"
