"""Ours: shards with an index, the crop's part decoded, uint8 channels-last batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.loaders.measure import BATCH, MIN_AREA, PREFETCH, SIZE, serve
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.card import Card
from pretrain.data.stream import TrainStream

STEPS = 1_000_000


def make(folder: str, workers: int) -> Iterable[Any]:
    """Batches for a million steps."""
    shards = Path(folder) / "packed" / "train"
    card = Card.load(shards)
    config = Experiment.model_validate(
        {
            "name": "loader",
            "duration": f"{STEPS} steps",
            "global_batch_size": BATCH,
            "model": {"variant": "S/16", "img_size": SIZE},
            "data": {
                "shards": str(shards),
                "num_samples": card.num_samples,
                "num_classes": card.num_classes,
                "train_transform": {"crop": "inception", "min_area": MIN_AREA, "resize_filter": "bilinear_aa"},
            },
            "optim": {"lr": 1.0},
            "cluster": {"num_workers": workers, **({"prefetch_factor": PREFETCH} if workers else {})},
        }
    )
    return TrainStream(config, 0, 1, BATCH).iterate(0, STEPS)


if __name__ == "__main__":
    serve("ours", make, len)
