"""SPDL: a random sampler, and a pipeline that reads and decodes in a pool."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from spdl.pipeline import PipelineBuilder  # pyright: ignore[reportMissingImports]
from spdl.source import DistributedRandomSampler  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import decoded

PACKAGE = "spdl"
_PAGES = "https://facebookresearch.github.io/spdl/latest"
DOCUMENTATION = {
    "use": f"{_PAGES}/getting_started/pipeline.html",
    "ranks": f"{_PAGES}/generated/spdl.source.DistributedRandomSampler.html",
    "workers": f"{_PAGES}/getting_started/parallelism.html",
}
_NO_STATE = "it documents no state to save"
NOT_OFFERED = {
    "resume": _NO_STATE,
    "resume_ranks": _NO_STATE,
    "resume_workers": _NO_STATE,
    "seek": _NO_STATE,
    "mixture": "its weights apply to samples, and it has no state to save",
    "http": "reading is left to the user's function",
}


def convert(source: Path, out: Path) -> None:
    """One file per image."""
    out.mkdir(parents=True)
    for number, data in tars.samples(source):
        (out / f"{number:09d}.jpg").write_bytes(data)


def _read(path: Path) -> tuple[int, Any]:
    return int(path.stem), decoded(path.read_bytes())


def _together(samples: list[tuple[int, Any]]) -> tuple[list[int], list[Any]]:
    return [label for label, _ in samples], [image for _, image in samples]


class Loader:
    """sampler → read and decode → aggregate, in threads, or in processes if there are workers."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._paths = sorted(Path(job.folders[0]).glob("*.jpg"))
        self._sampler = DistributedRandomSampler(len(self._paths), rank=job.rank, world_size=job.world, seed=job.seed)
        self._pool = ProcessPoolExecutor(job.workers) if job.workers else None

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass."""
        self._sampler.shuffle(seed=self._job.seed + number)
        count = max(1, self._job.workers)
        pipeline = (
            PipelineBuilder()
            .add_source(self._paths[index] for index in self._sampler)
            .pipe(_read, executor=self._pool, concurrency=count, output_order="input")
            .aggregate(self._job.batch_size)
            .pipe(_together)
            .add_sink(2)
            .build(num_threads=2)
        )
        with pipeline.auto_stop():
            yield from pipeline
