"""LitData: chunks of the same JPEG bytes, with torchvision's transforms on Pillow images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize  # pyright: ignore[reportMissingImports]

from benchmarks.loaders.measure import BATCH, PREFETCH, serve
from benchmarks.loaders.pillow_transform import decoded, size


def item(path: str) -> dict[str, Any]:
    """One photo as a sample of a chunk."""
    return {"image": Path(path).read_bytes(), "label": 0}


class Photos(StreamingDataset):  # pyright: ignore[reportGeneralTypeIssues]
    """Decodes what the chunks hold."""

    def __getitem__(self, index: Any) -> Any:
        """(image, label)."""
        found = super().__getitem__(index)
        return decoded(found["image"]), found["label"]


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches of one epoch."""
    chunks = Path(folder) / "litdata"
    if not chunks.exists():
        photos = sorted(str(path) for path in (Path(folder) / "photos").rglob("*.jpg"))
        optimize(item, photos, str(chunks), chunk_bytes="64MB", num_workers=1)  # pyright: ignore[reportCallIssue]
    options = {"prefetch_factor": PREFETCH, "persistent_workers": True} if workers else {}
    photos = Photos(str(chunks), shuffle=True, drop_last=True)
    return StreamingDataLoader(photos, batch_size=BATCH, num_workers=workers, **options)  # pyright: ignore[reportCallIssue]


if __name__ == "__main__":
    serve("litdata", make, size)
