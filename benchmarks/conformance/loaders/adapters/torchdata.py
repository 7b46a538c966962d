"""torchdata.nodes: image files, a distributed sampler, and a pool that decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler
from torchdata import nodes  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import decoded

PACKAGE = "torchdata"
_PAGES = "https://docs.pytorch.org/data/0.11"
DOCUMENTATION = {
    "use": f"{_PAGES}/migrate_to_nodes_from_utils.html",
    "resume": f"{_PAGES}/getting_started_with_torchdata_nodes.html",
    "mixture": f"{_PAGES}/torchdata.nodes.html",
}
NOT_OFFERED = {
    "resume_ranks": "the state belongs to one rank of a fixed number",
    "http": "reading is left to the user's data set",
}


def convert(source: Path, out: Path) -> None:
    """One file per image."""
    out.mkdir(parents=True)
    for number, data in tars.samples(source):
        (out / f"{number:09d}.jpg").write_bytes(data)


class Files:
    """A map-style data set of the files of a folder."""

    def __init__(self, folder: str) -> None:
        self._paths = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        path = self._paths[index]
        return int(path.stem), decoded(path.read_bytes())


def _together(samples: list[tuple[int, Any]]) -> tuple[list[int], list[Any]]:
    return [label for label, _ in samples], [image for _, image in samples]


class Loader:
    """sampler → parallel map → batches → loader, as the migration guide builds them."""

    def __init__(self, job: Job) -> None:
        sources = {}
        for folder in job.folders:
            files: Any = Files(folder)
            sampler = DistributedSampler(files, num_replicas=job.world, rank=job.rank, seed=job.seed)
            node: Any = nodes.SamplerWrapper(sampler)
            node = nodes.ParallelMapper(node, files.__getitem__, num_workers=job.workers, method="process")
            sources[folder] = node
        if len(sources) > 1:
            weights = dict(zip(job.folders, job.weights, strict=True))
            node = nodes.MultiNodeWeightedSampler(sources, weights, seed=job.seed)
        self._loader = nodes.Loader(nodes.Mapper(nodes.Batcher(node, job.batch_size, drop_last=False), _together))

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass, or the rest of the epoch of the state; SamplerWrapper sets the sampler's epoch."""
        yield from self._loader

    def state_dict(self) -> Any:
        """Of the loader."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Of the loader."""
        self._loader.load_state_dict(state)
