"""LitData: chunks of the same JPEG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from litdata import (  # pyright: ignore[reportMissingImports]
    CombinedStreamingDataset,
    StreamingDataLoader,
    StreamingDataset,
    optimize,
)

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import decoded

PACKAGE = "litdata"
_PAGES = "https://lightning.ai/docs/litdata/features"
DOCUMENTATION = {
    "use": "https://github.com/Lightning-AI/litdata#quick-start",
    "ranks": f"{_PAGES}/mulit-gpu-multi-node",
    "resume": "https://github.com/Lightning-AI/litdata#pause-resume",
    "mixture": "https://github.com/Lightning-AI/litdata#features-for-optimizing-datasets",
}
NOT_OFFERED = {
    "ranks": "each rank has chunks of its own, and the documentation promises no common order",
    "workers": "each worker has chunks of its own, and the documentation promises no common order",
    "http": "it reads cloud stores, the Hugging Face hub and folders, not plain HTTP",
}
CHUNK = 80  # samples, as a tar has


def _item(samples: list[tuple[int, bytes]], index: int) -> dict[str, Any]:
    number, data = samples[index]
    return {"label": number, "image": data}


def convert(source: Path, out: Path) -> None:
    """Chunks, written by one process in order."""
    samples = tars.samples(source)
    optimize(
        partial(_item, samples), list(range(len(samples))), str(out), chunk_size=CHUNK, num_workers=1, verbose=False
    )


def _together(samples: list[dict[str, Any]]) -> tuple[list[int], list[Any]]:
    return [sample["label"] for sample in samples], [decoded(sample["image"]) for sample in samples]


class Loader:
    """A StreamingDataset in its StreamingDataLoader."""

    def __init__(self, job: Job) -> None:
        if job.world > 1:
            torch.distributed.init_process_group("gloo")
        sets = [StreamingDataset(folder, shuffle=True, drop_last=True, seed=job.seed) for folder in job.folders]
        dataset = CombinedStreamingDataset(sets, seed=job.seed, weights=job.weights, iterate_over_all=False)
        self._loader = StreamingDataLoader(
            dataset if len(sets) > 1 else sets[0],
            batch_size=job.batch_size,
            num_workers=job.workers,
            collate_fn=_together,
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass, or the rest of the epoch of the state."""
        yield from self._loader

    def state_dict(self) -> Any:
        """Of the loader."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Of the loader."""
        self._loader.load_state_dict(state)
