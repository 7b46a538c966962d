"""wids: tars by index, with the sampler for several ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import wids  # pyright: ignore[reportMissingImports]

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import pixels_of

PACKAGE = "wids"
DOCUMENTATION = {
    "use": "https://github.com/webdataset/webdataset/blob/main/examples/train-resnet50-wids.ipynb",
    "ranks": "https://github.com/webdataset/webdataset/blob/main/examples/train-resnet50-multiray-wids.ipynb",
}
_NO_STATE = "it documents no state to save"
NOT_OFFERED = {
    "ranks": "each rank shuffles its own part, and the documentation promises no common order",
    "resume": _NO_STATE,
    "resume_ranks": _NO_STATE,
    "resume_workers": _NO_STATE,
    "seek": _NO_STATE,
    "mixture": "it documents no mixture by weight",
    "http": "its reader of remote shards fetches an index that names them; plain tars are read from a folder",
}


CHUNK = 1000
INDEX = "index.json"


def convert(source: Path, out: Path) -> None:
    """The tars, with the index that its command makes."""
    files = [path.name for path in tars.copy(source, out)]
    command = [Path(sys.executable).with_name("widsindex"), "create", *files, "--output", INDEX]
    subprocess.run(command, check=True, cwd=out, stdout=subprocess.DEVNULL)


def _made(sample: dict[str, Any]) -> tuple[int, Any]:
    return int(sample[".cls"]), pixels_of(sample[".jpg"])


class Loader:
    """The data set of the notebooks, with their sampler in a DataLoader."""

    def __init__(self, job: Job) -> None:
        if job.world > 1:
            torch.distributed.init_process_group("gloo")
        dataset = wids.ShardListDataset(f"{job.folders[0]}/{INDEX}", keep=True).add_transform(_made)
        self._sampler = wids.DistributedChunkedSampler(dataset, chunksize=CHUNK, shuffle=True, seed=job.seed)
        self._loader = torch.utils.data.DataLoader(
            dataset, batch_size=job.batch_size, sampler=self._sampler, num_workers=job.workers
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass."""
        self._sampler.set_epoch(number)
        yield from self._loader
