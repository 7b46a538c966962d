"""webdataset: shards split over ranks and workers, a shuffle buffer, its own decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job

PACKAGE = "webdataset"
DOCUMENTATION = {
    "use": "https://webdataset.github.io/webdataset/",
    "ranks": "https://webdataset.github.io/webdataset/multinode/",
    "mixture": "https://webdataset.github.io/webdataset/sources/",
}
_NO_STATE = "it documents no state to save"
NOT_OFFERED = {
    "ranks": "shards are split over ranks, and the documentation promises no common order",
    "workers": "shards are split over workers, and the documentation promises no common order",
    "resume": _NO_STATE,
    "resume_ranks": _NO_STATE,
    "resume_workers": _NO_STATE,
    "seek": _NO_STATE,
    "mixture": _NO_STATE,
}
BUFFER = 1000


def convert(source: Path, out: Path) -> None:
    """The tars as they are."""
    tars.copy(source, out)


class Loader:
    """The pipeline of the documentation's first page, split by node as its page on several nodes shows."""

    def __init__(self, job: Job) -> None:
        dataset: Any = wds.WebDataset(job.tars, shardshuffle=100, nodesplitter=wds.split_by_node)  # type: ignore[call-arg]
        dataset = dataset.shuffle(BUFFER).decode("rgb8").to_tuple("jpg", "cls").batched(job.batch_size)
        self._loader = wds.WebLoader(dataset, batch_size=None, num_workers=job.workers)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass."""
        for images, labels in self._loader:
            yield labels, images
