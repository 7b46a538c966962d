"""timm's reader of tars, its transform and its collation of uint8 arrays (normalisation is left to the device)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timm.data import create_dataset, create_transform
from timm.data.loader import fast_collate

from benchmarks.loaders.measure import MIN_AREA, SIZE, serve
from benchmarks.loaders.pillow_transform import loader, size


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches of one epoch."""
    root = str(Path(folder) / "photos")
    dataset: Any = create_dataset("", root, is_training=True)
    dataset.transform = create_transform(
        SIZE, is_training=True, use_prefetcher=True, scale=(MIN_AREA, 1.0), interpolation="bilinear", color_jitter=0.0
    )
    return loader(dataset, workers, shuffle=True, drop_last=True, collate_fn=fast_collate)


if __name__ == "__main__":
    serve("timm_reader", make, size)
