"""Stock webdataset on the same tars, with torchvision's transforms on Pillow images: what its documentation shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import webdataset as wds

from benchmarks.loaders.measure import serve
from benchmarks.loaders.pillow_transform import decoded, loader, size


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches without end."""
    tars = sorted(str(path) for path in (Path(folder) / "packed" / "train").glob("*.tar"))
    pipeline: Any = wds
    dataset = pipeline.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(100).to_tuple("jpg", "cls")
    return loader(dataset.map_tuple(decoded, int), workers, drop_last=True)


if __name__ == "__main__":
    serve("stock_webdataset", make, size)
