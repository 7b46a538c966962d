"""The model's inputs (crops, policies, erasing, mixing, targets) are the same for any ranks × micro-batch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.assembly.feeder import Feeder
from pretrain.data.stream import TrainStream
from tests.pool import Pool
from tests.unit.data.sets import experiment, write_set

SIZES = [13, 1, 30, 1, 22]
STEPS = 3
TRANSFORM = {
    "crop": "inception",
    "min_area": 0.3,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.3,
    "random_erasing": {"prob": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("noisy") / "train", SIZES, noise=True, image_format="jpeg")


def tensors(folder: Path, micro: int, per: str, first_step: int = 0) -> dict[int, str]:
    """Slot → digest of the image and target that this rank's model gets."""
    mixing = {"mixup": 0.8, "cutmix": 1.0, "prob": 0.9, "per": per}
    config = experiment(folder, sum(SIZES), data__train_transform=TRANSFORM, data__mixing=mixing, data__lanes=4)
    stream = TrainStream(config, dist.get_rank(), dist.get_world_size(), micro)
    feeder = Feeder(config, torch.nn.Identity(), stream, torch.device("cpu"))
    found = {}
    for batch in stream.iterate(first_step * config.global_batch_size, STEPS - first_step):
        inputs = feeder.prepare(batch)
        assert inputs.targets is not None
        for slot, image, target in zip(batch.slots.tolist(), inputs.images, inputs.targets, strict=True):
            found[slot] = hashlib.sha256(image.numpy().tobytes() + target.numpy().tobytes()).hexdigest()
    return found


def together(pool: Pool, folder: Path, micro: int, per: str, first_step: int = 0) -> dict[int, str]:
    parts = pool.run(tensors, folder, micro, per, first_step)
    return {slot: digest for part in parts for slot, digest in part.items()}


@pytest.mark.parametrize("per", ["batch", "pair"])
def test_ranks_and_micro_batches_make_no_difference(
    pool1: Pool, pool2: Pool, pool4: Pool, folder: Path, per: str
) -> None:
    whole = together(pool1, folder, 16, per)
    assert len(whole) == 16 * STEPS == len(set(whole.values()))
    for pool, micros in ((pool1, (2, 8)), (pool2, (2, 4, 8)), (pool4, (2, 4))):
        for micro in micros:
            assert together(pool, folder, micro, per) == whole, (pool.size, micro)


def test_a_resume_gets_the_same(pool1: Pool, pool2: Pool, folder: Path) -> None:
    whole = together(pool1, folder, 16, "batch")
    later = together(pool2, folder, 4, "batch", 2)
    assert later == {slot: digest for slot, digest in whole.items() if slot >= 2 * 16}
