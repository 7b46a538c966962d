"""Hugging Face datasets, streaming: the tars as they are, in torchdata's StatefulDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import interleave_datasets, load_dataset  # pyright: ignore[reportMissingImports]
from datasets.distributed import split_dataset_by_node  # pyright: ignore[reportMissingImports]
from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import pixels_of

PACKAGE = "datasets"
_PAGES = "https://huggingface.co/docs/datasets"
DOCUMENTATION = {
    "use": f"{_PAGES}/stream",
    "ranks": f"{_PAGES}/use_with_pytorch#distributed",
    "resume": f"{_PAGES}/use_with_pytorch#checkpoint-and-resume",
    "mixture": f"{_PAGES}/stream#interleave",
}
NOT_OFFERED = {
    "ranks": "shards are split over ranks, and the documentation promises no common order",
    "workers": "shards are split over workers, and the documentation promises no common order",
    "resume_ranks": "the state belongs to one rank of a fixed number",
    "resume_workers": "the state belongs to a fixed number of workers",
}
BUFFER = 1000


def convert(source: Path, out: Path) -> None:
    """The tars as they are."""
    tars.copy(source, out)


def _together(samples: list[dict[str, Any]]) -> tuple[list[int], list[Any]]:
    return [int(sample["cls"]) for sample in samples], [pixels_of(sample["jpg"]) for sample in samples]


class Loader:
    """load_dataset in streaming mode, shuffled, split by node."""

    def __init__(self, job: Job) -> None:
        sets = []
        for folder in job.folders:
            files = job.tars if folder == job.folders[0] else sorted(map(str, Path(folder).glob("*.tar")))
            one = load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
            sets.append(one.shuffle(seed=job.seed, buffer_size=BUFFER))
        mixed = interleave_datasets(
            sets, probabilities=list(job.weights), seed=job.seed, stopping_strategy="all_exhausted"
        )
        dataset = mixed if len(sets) > 1 else sets[0]
        if job.world > 1:
            dataset = split_dataset_by_node(dataset, rank=job.rank, world_size=job.world)
        self._dataset = dataset
        self._loader = StatefulDataLoader(
            dataset, batch_size=job.batch_size, num_workers=job.workers, collate_fn=_together
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass, or the rest of the epoch of the state."""
        self._dataset.set_epoch(number)
        yield from self._loader

    def state_dict(self) -> Any:
        """Of the loader."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Of the loader."""
        self._loader.load_state_dict(state)
