"""Fashion-MNIST: 60,000 + 10,000 grey images of 28×28 pixels of clothes, 10 classes.

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017. The file format is LeCun's IDX: two zero bytes, type 0x08 (uint8), number of axes, the axes as big-endian uint32.
"""

from __future__ import annotations

import gzip
import math
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.png import encode_grey
from pipelines.sources.protocol import Item, Source
from pretrain.errors import DataError, SetupError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "test": "t10k"}
NAMES = (
    "t-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_UINT8 = 0x08


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
