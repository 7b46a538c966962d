"""Ours: the stream that a training draws from, on the tars with an index beside them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import GLOBAL_BATCH, Job
from benchmarks.conformance.loaders.marks import NUM_CLASSES, SIDE
from pipelines.__main__ import main
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.card import Card
from pretrain.data.stream import TrainStream

PACKAGE = "vit-pretrain"
DOCUMENTATION = {
    "use": "data.md#check-shards-and-index-foreign-ones",
    "remote": "streaming.md",
    "mixture": "streaming.md#which-samples",
    "ranks": "train.md",
    "resume": "architecture.md#the-data-order",
}
NOT_OFFERED: dict[str, str] = {}
LANES = 12  # shared by 1, 2, 3 and 4 ranks
INDEXED = ["--labels-are", "numbers", "--num-classes", str(NUM_CLASSES), "--no-decode", "--no-webdataset"]


def convert(source: Path, out: Path) -> None:
    """The tars, indexed as foreign ones are."""
    tars.copy(source, out)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["verify", str(out), *INDEXED])
    if code:
        raise RuntimeError(said.getvalue())


class Loader:
    """The training stream, which has no end."""

    def __init__(self, job: Job) -> None:
        self._size, self._done = job.num_samples, 0
        sets = [{"shards": folder, "num_samples": _size(folder, job)} for folder in job.folders]
        weighted = [one | {"weight": weight} for one, weight in zip(sets, job.weights, strict=False)]
        config = Experiment.model_validate(
            {
                "name": "conformance",
                "seed": job.seed,
                "duration": "10 epochs",
                "global_batch_size": GLOBAL_BATCH,
                "model": {"variant": "Ti/16", "img_size": SIDE},
                "data": {
                    **({"mixture": weighted, "num_samples": job.num_samples} if len(sets) > 1 else sets[0]),
                    "num_classes": NUM_CLASSES,
                    "lanes": LANES,
                    "train_transform": {"crop": "resize", "hflip": 0.0},
                },
                "optim": {"lr": 1.0},
                "cluster": {"num_workers": job.workers, "cache": {"dir": str(Path(job.states) / "cache")}},
            }
        )
        self._stream = TrainStream(config, job.rank, job.world, job.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Any, Any]]:
        """The rest of the epoch; a batch with the samples of two epochs belongs to the first."""
        left = -(-self._size * (number + 1) // GLOBAL_BATCH) - self._done
        for batch in self._stream.iterate(self._done * GLOBAL_BATCH, left):
            self._done += 1
            yield batch.labels[:, 0].tolist(), batch.images.permute(0, 2, 3, 1).numpy()

    def state_dict(self) -> int:
        """The position, which a checkpoint stores."""
        return self._done

    def load_state_dict(self, state: int) -> None:
        """Continues at the position."""
        self._done = state

    def reports(self) -> list[str]:
        """Counts of unusable samples per shard, as a training prints them."""
        return [self._stream.faults.summary()]


def _size(folder: str, job: Job) -> int:
    return job.num_samples if "://" in folder else Card.load(Path(folder)).num_samples
