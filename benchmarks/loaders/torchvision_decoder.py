"""webdataset with torchvision's own JPEG decoder and its transforms on uint8 tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.loaders.measure import MIN_AREA, SIZE, serve
from benchmarks.loaders.pillow_transform import loader, size

TRANSFORM = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
)


def decoded(data: bytes) -> torch.Tensor:
    """JPEG bytes → a normalised image."""
    return TRANSFORM(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB))


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches without end."""
    tars = sorted(str(path) for path in (Path(folder) / "packed" / "train").glob("*.tar"))
    pipeline: Any = wds
    dataset = pipeline.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(100).to_tuple("jpg", "cls")
    return loader(dataset.map_tuple(decoded, int), workers, drop_last=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    serve("torchvision_decoder", make, size)
