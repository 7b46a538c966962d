"""Grain: ArrayRecord files of the same JPEG bytes, in its Dataset API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain  # pyright: ignore[reportMissingImports]
from absl import flags  # pyright: ignore[reportMissingImports]
from array_record.python.array_record_module import ArrayRecordWriter  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import decoded

PACKAGE = "grain"
_PAGES = "https://google-grain.readthedocs.io/en/latest"
DOCUMENTATION = {
    "use": f"{_PAGES}/tutorials/dataset_basic_tutorial.html",
    "ranks": f"{_PAGES}/tutorials/dataset_basic_tutorial.html",
    "resume": f"{_PAGES}/tutorials/dataset_advanced_tutorial.html",
    "workers": f"{_PAGES}/tutorials/dataset_advanced_tutorial.html",
}
NOT_OFFERED = {
    "resume_ranks": "an iterator's state belongs to one process of a fixed number",
    "resume_workers": "the documentation asks for the same pipeline, workers included",
    "http": "it reads ArrayRecord files from folders and Google's stores",
}
SHARD = 80


def convert(source: Path, out: Path) -> None:
    """ArrayRecord files of 80 samples: the number, then the JPEG."""
    samples = tars.samples(source)
    out.mkdir(parents=True)
    for shard, start in enumerate(range(0, len(samples), SHARD)):
        writer = ArrayRecordWriter(str(out / f"{shard:06d}.array_record"), "group_size:1,uncompressed")
        for number, data in samples[start : start + SHARD]:
            writer.write(number.to_bytes(4, "big") + data)
        writer.close()


def _made(record: bytes) -> tuple[int, Any]:
    return int.from_bytes(record[:4], "big"), decoded(record[4:])


class Loader:
    """source → shuffle → slice per process → map → batch, with worker processes behind it."""

    def __init__(self, job: Job) -> None:
        if job.workers:
            flags.FLAGS(["conformance"])  # its worker processes need parsed flags
        sets = []
        for folder in job.folders:
            files = sorted(str(path) for path in Path(folder).glob("*.array_record"))
            one = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).seed(job.seed).shuffle()
            sets.append(one)
        mixed = grain.MapDataset.mix(sets, list(job.weights)) if len(sets) > 1 else sets[0]
        self._length = len(mixed)
        mixed = mixed.repeat()[job.rank :: job.world].map(_made)
        made = mixed.batch(job.batch_size, drop_remainder=False).to_iter_dataset()
        if job.workers:
            made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=job.workers))
        self._batches = -(-self._length // (job.batch_size * job.world))
        self._iterator, self._done = iter(made), 0

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The batches of one pass of the endless iterator."""
        while self._done < self._batches * (number + 1):
            batch = next(self._iterator)
            self._done += 1
            yield batch

    def state_dict(self) -> Any:
        """Of the iterator."""
        state = self._iterator.get_state()
        return self._done, state if isinstance(state, bytes) else json.dumps(state)

    def load_state_dict(self, state: Any) -> None:
        """Of the iterator."""
        self._done, inner = state
        self._iterator.set_state(inner if isinstance(inner, bytes) else json.loads(inner))
