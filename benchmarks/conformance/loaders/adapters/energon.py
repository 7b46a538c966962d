"""Megatron-Energon: the tars with the index and description of its command, its savable loader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from megatron.energon import (  # pyright: ignore[reportMissingImports]
    DefaultTaskEncoder,
    ImageClassificationSample,
    SampleDecoder,
    WorkerConfig,
    get_savable_loader,
    get_train_dataset,
)

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.marks import pixels_of

PACKAGE = "megatron-energon"
_PAGES = "https://nvidia.github.io/Megatron-Energon"
DOCUMENTATION = {
    "use": f"{_PAGES}/basic/quickstart.html",
    "convert": f"{_PAGES}/basic/data_prep.html",
    "ranks": f"{_PAGES}/advanced/repro_scaling.html",
    "resume": f"{_PAGES}/basic/save_restore.html",
    "mixture": f"{_PAGES}/basic/metadataset.html",
}
_SAME_PRODUCT = "promised only while ranks × workers stays the same"
NOT_OFFERED = {
    "ranks": _SAME_PRODUCT,
    "workers": _SAME_PRODUCT,
    "resume_ranks": f"{_SAME_PRODUCT}, after its command has dealt out the states again",
    "resume_workers": _SAME_PRODUCT,
    "http": "its remote sets are in S3-compatible and cloud stores",
}
BUFFER, SEQUENCE = 100, 100  # as on the page of the quick start


def convert(source: Path, out: Path) -> None:
    """The tars, indexed and described by ``energon prepare``."""
    tars.copy(source, out)
    fields = json.dumps({"image": "jpg", "label": "cls"})
    split, made = ("--split-parts", "train:shard-.*"), ("--sample-type", "ImageClassificationSample")
    command = [Path(sys.executable).with_name("energon"), "prepare", out, "--non-interactive", "--no-progress"]
    subprocess.run([*command, *split, *made, "--field-map", fields], check=True, stdout=subprocess.DEVNULL)


class Encoder(DefaultTaskEncoder):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """Pillow images, in batches of (labels, pixels)."""

    decoder = SampleDecoder(image_decode="pilrgb")

    def batch(self, samples: list[ImageClassificationSample]) -> tuple[list[int], list[Any]]:
        """A batch."""
        return [int(sample.label) for sample in samples], [pixels_of(sample.image) for sample in samples]


def _source(job: Job) -> str:
    """The set, or a file that blends several by weight."""
    if len(job.folders) == 1:
        return job.folders[0]
    blend = [{"weight": weight, "path": path} for path, weight in zip(job.folders, job.weights, strict=True)]
    kind = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}
    file = Path(job.folders[0]).with_name("blend.yaml")
    file.write_text(yaml.safe_dump({**kind, "splits": {"train": {"blend": blend}}}))
    return str(file)


class Loader:
    """get_train_dataset in a savable loader; a single set ends after each epoch, a blend repeats."""

    def __init__(self, job: Job) -> None:
        workers = WorkerConfig(rank=job.rank, world_size=job.world, num_workers=job.workers, seed_offset=job.seed)
        dataset = get_train_dataset(
            _source(job),
            worker_config=workers,
            batch_size=job.batch_size,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=SEQUENCE,
            task_encoder=Encoder(),
            repeat=len(job.folders) > 1,
        )
        self._loader = get_savable_loader(dataset)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """One pass, or the rest of the epoch of the state."""
        yield from self._loader

    def state_dict(self) -> Any:
        """Of this rank, as the page recommends."""
        return self._loader.save_state_rank()

    def load_state_dict(self, state: Any) -> None:
        """Of this rank."""
        self._loader.restore_state_rank(state)
