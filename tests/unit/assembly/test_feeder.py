"""The patches that each image of a micro-batch keeps follow from its slot."""

from __future__ import annotations

import torch

from pretrain.assembly.feeder import Feeder
from pretrain.data.batch import Batch
from pretrain.models.families.registry import build_model
from pretrain.models.layers.patch_drop import kept_patches
from tests.distributed.training import SIZE, experiment

SLOTS = torch.tensor([7, 2, 90, 31])


def batch() -> Batch:
    return Batch(
        images=torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8),
        labels=torch.zeros(4, 1, dtype=torch.int64),
        sample_ids=torch.arange(4),
        slots=SLOTS,
        valid=torch.ones(4, dtype=torch.bool),
    )


def feeder(rate: float) -> Feeder:
    config = experiment(model__patch_drop=rate)
    model = build_model(config.model, config.num_outputs)
    return Feeder(config, model, None, torch.device("cpu"))  # type: ignore[arg-type]  # the batch comes from here


def test_kept_patches_are_those_of_the_slots() -> None:
    made = feeder(0.5).prepare(batch())
    config = experiment(model__patch_drop=0.5)
    network = build_model(config.model, config.num_outputs)
    expected = kept_patches(SLOTS.numpy(), network.shape, seed=config.seed)  # type: ignore[arg-type]
    assert made.kept is not None and expected is not None and torch.equal(made.kept, expected)
    assert network(made.images, made.drop_path, **made.options).shape == (4, config.num_outputs)


def test_nothing_is_passed_where_nothing_is_dropped() -> None:
    assert feeder(0.0).prepare(batch()).options == {}
