"""MosaicML streaming: MDS shards of the same JPEG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming import (  # pyright: ignore[reportMissingImports]
    MDSWriter,
    Stream,
    StreamingDataLoader,
    StreamingDataset,
)

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import decoded

PACKAGE = "mosaicml-streaming"
_PAGES = "https://docs.mosaicml.com/projects/streaming/en/latest"
DOCUMENTATION = {
    "use": f"{_PAGES}/getting_started/main_concepts.html",
    "ranks": f"{_PAGES}/distributed_training/elastic_determinism.html",
    "resume": f"{_PAGES}/distributed_training/fast_resumption.html",
    "mixture": f"{_PAGES}/dataset_configuration/mixing_data_sources.html",
}
NOT_OFFERED = {"http": "it reads cloud stores, SFTP and folders, not plain HTTP"}


def convert(source: Path, out: Path) -> None:
    """MDS shards of 64 KiB, about as many samples as a tar has, with a hash of each."""
    with MDSWriter(
        out=str(out), columns={"image": "bytes", "label": "int"}, size_limit=1 << 16, hashes=["xxh64"]
    ) as writer:
        for number, data in tars.samples(source):
            writer.write({"image": data, "label": number})


def _together(samples: list[dict[str, Any]]) -> tuple[list[int], list[Any]]:
    return [sample["label"] for sample in samples], [decoded(sample["image"]) for sample in samples]


class Loader:
    """A StreamingDataset in its StreamingDataLoader; fixed canonical nodes, as elastic determinism asks for."""

    def __init__(self, job: Job) -> None:
        several = len(job.folders) > 1
        streams = [Stream(local=one, proportion=share) for one, share in zip(job.folders, job.weights, strict=False)]
        dataset = StreamingDataset(
            **({"streams": streams} if several else {"local": job.folders[0]}),
            shuffle=True,
            shuffle_seed=job.seed,
            num_canonical_nodes=1,
            validate_hash="xxh64",
            batch_size=job.batch_size,
        )
        self._loader = StreamingDataLoader(
            dataset, batch_size=job.batch_size, num_workers=job.workers, collate_fn=_together, drop_last=False
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
