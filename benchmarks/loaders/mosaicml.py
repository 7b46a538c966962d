"""MosaicML streaming: MDS shards of the same JPEG bytes, with torchvision's transforms on Pillow images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.loaders.measure import BATCH, serve
from benchmarks.loaders.pillow_transform import decoded, loader, size


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches of one epoch."""
    from streaming import MDSWriter, StreamingDataset  # pyright: ignore[reportMissingImports]

    class Photos(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            return decoded(found["image"]), found["label"]

    shards = Path(folder) / "mosaicml"
    if not shards.exists():
        with MDSWriter(out=str(shards), columns={"image": "bytes", "label": "int"}) as writer:
            for path in sorted((Path(folder) / "photos").rglob("*.jpg")):
                writer.write({"image": path.read_bytes(), "label": 0})
    return loader(Photos(local=str(shards), shuffle=True, batch_size=BATCH), workers, drop_last=True)


if __name__ == "__main__":
    serve("mosaicml", make, size)
