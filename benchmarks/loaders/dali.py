"""DALI on the CPU: its reader of tars, fused random-crop decode, resize and flip to uint8; a thread per worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loaders.measure import BATCH, MIN_AREA, PREFETCH, SIZE, serve


def make(folder: str, workers: int) -> Iterator[Any]:
    """Batches without end."""
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    tars = sorted(str(path) for path in (Path(folder) / "packed" / "train").glob("*.tar"))

    @pipeline_def(batch_size=BATCH, num_threads=max(1, workers), device_id=None, prefetch_queue_depth=PREFETCH)
    def photos() -> Any:
        encoded, label = fn.readers.webdataset(
            paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=256, missing_component_behavior="error"
        )
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=[MIN_AREA, 1.0], random_aspect_ratio=[0.75, 4 / 3]
        )
        images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5)), label

    pipeline = photos()
    pipeline.build()
    while True:
        yield pipeline.run()


if __name__ == "__main__":
    serve("dali", make, lambda batch: len(batch[0]))
