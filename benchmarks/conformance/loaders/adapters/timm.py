"""timm: its reader of tars in create_dataset and create_loader, as its training script calls them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader

from benchmarks.conformance.loaders import marks, tars
from benchmarks.conformance.loaders.job import Job

PACKAGE = "timm"
DOCUMENTATION = {
    "use": "https://huggingface.co/docs/timm/training_script",
    "reader": "https://github.com/huggingface/pytorch-image-models/blob/main/timm/data/readers/reader_wds.py",
}
_NO_STATE = "it documents no state to save"
NOT_OFFERED = {
    "ranks": "shards are split over ranks, and the documentation promises no common order",
    "workers": "shards are split over workers, and the documentation promises no common order",
    "resume": f"{_NO_STATE}; a run resumes at an epoch",
    "resume_ranks": _NO_STATE,
    "resume_workers": _NO_STATE,
    "seek": _NO_STATE,
    "mixture": "it documents no mixture by weight",
}
INFO = "_info.json"


def convert(source: Path, out: Path) -> None:
    """The tars, with the file of their names and sizes that the reader looks for."""
    files = tars.copy(source, out)
    lengths = [len(tars.samples_of(path)) for path in files]
    split = {
        "name": "train",
        "filenames": [path.name for path in files],
        "shard_lengths": lengths,
        "num_samples": sum(lengths),
    }
    (out / INFO).write_text(json.dumps({"splits": {"train": split}}))


class Loader:
    """The loader of the training script without augmentation, on the CPU."""

    def __init__(self, job: Job) -> None:
        if job.world > 1:
            torch.distributed.init_process_group("gloo")
        self._dataset: Any = create_dataset(
            "wds/", root=job.folders[0], split="train", is_training=True, batch_size=job.batch_size, seed=job.seed
        )
        self._loader = create_loader(
            self._dataset,
            input_size=(3, marks.SIDE, marks.SIDE),
            batch_size=job.batch_size,
            is_training=True,
            no_aug=True,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            num_workers=job.workers,
            distributed=job.world > 1,
            use_prefetcher=False,
            persistent_workers=job.workers > 0,
        )

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass."""
        self._dataset.set_epoch(number)
        for images, labels in self._loader:
            yield labels, (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
