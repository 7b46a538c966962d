"""DALI on the CPU: its reader of tars, its decoder, its checkpoints; a thread per worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job

PACKAGE = "nvidia-dali-cuda130"
_PAGES = "https://docs.nvidia.com/deeplearning/dali/user-guide/docs"
DOCUMENTATION = {
    "use": f"{_PAGES}/examples/general/data_loading/dataloading_webdataset.html",
    "ranks": f"{_PAGES}/advanced_topics_sharding.html",
    "resume": f"{_PAGES}/advanced_topics_checkpointing.html",
}
NOT_OFFERED = {
    "ranks": "each rank shuffles a part of its own, and the documentation promises no common order",
    "resume_ranks": "a checkpoint belongs to a pipeline of the same arguments",
    "killed": "it has threads, not processes",
    "mixture": "it documents no mixture by weight",
    "http": "its reader of tars reads local files",
}
BUFFER = 1000


def convert(source: Path, out: Path) -> None:
    """The tars as they are; the reader indexes them when it opens them."""
    tars.copy(source, out)


class Loader:
    """The pipeline of the documentation; the reader's shards are the ranks'."""

    def __init__(self, job: Job) -> None:
        self._job, self._done = job, 0
        self._pipeline = self._make(None)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The batches of one pass; the pipeline itself has no end."""
        while self._done < self._batches * (number + 1):
            images, labels = self._pipeline.run()
            self._done += 1
            yield [int(bytes(labels.at(i)).decode()) for i in range(len(labels))], images.as_array()

    def state_dict(self) -> Any:
        """The pipeline's checkpoint."""
        return self._done, self._pipeline.checkpoint()

    def load_state_dict(self, state: Any) -> None:
        """A pipeline from the checkpoint."""
        self._done, checkpoint = state
        self._pipeline = self._make(checkpoint)

    def _make(self, checkpoint: Any) -> Any:
        job = self._job

        @pipeline_def(
            batch_size=job.batch_size,
            num_threads=max(1, job.workers),
            device_id=None,
            seed=job.seed,
            enable_checkpointing=True,
        )
        def photos() -> Any:
            encoded, label = fn.readers.webdataset(
                paths=job.tars,
                ext=["jpg", "cls"],
                random_shuffle=True,
                initial_fill=BUFFER,
                shard_id=job.rank,
                num_shards=job.world,
                name="reader",
                missing_component_behavior="error",
            )
            return fn.decoders.image(encoded, device="cpu", output_type=types.RGB), label

        pipeline = photos(checkpoint=checkpoint)
        pipeline.build()
        meta = pipeline.reader_meta("reader")
        self._batches = -(-meta["epoch_size_padded"] // meta["number_of_shards"] // job.batch_size)
        return pipeline
