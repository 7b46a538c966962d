"""Masked patch prediction: which patches, what replaces them, which colours, and the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.models.init import init_weights
from pretrain.models.vit_tasks import Corruption
from pretrain.objectives.masked_patches import MaskedPatches, corruption, mean_colours
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.registry import Context, build_objective
from tests.golden.twins import small_config
from tests.unit.objectives.batches import settings_of

HALF = (0.5, 0.5, 0.5)


def test_shares_are_the_papers() -> None:
    slots, patches = np.arange(2000), 64
    positions, sources = corruption(slots, patches, 0.5, seed=0)
    assert positions.shape == sources.shape == (2000, 32)
    assert all(len(set(row)) == 32 for row in positions[:50]), "each patch at most once"
    masked, kept = (sources == -1).mean(), (sources == positions).mean()
    assert masked == pytest.approx(0.8, abs=0.01) and kept == pytest.approx(0.1, abs=0.01)
    counts = np.bincount(positions.ravel(), minlength=patches) / 2000
    assert counts.min() > 0.45 and counts.max() < 0.55, "every patch is as likely as another"


def test_masks_are_a_function_of_seed_and_slot() -> None:
    whole = corruption(np.arange(8), 16, 0.5, seed=3)
    part = corruption(np.array([5, 2]), 16, 0.5, seed=3)
    for all_rows, rows in zip(whole, part, strict=True):
        assert np.array_equal(all_rows[[5, 2]], rows)
    assert not np.array_equal(whole[0], corruption(np.arange(8), 16, 0.5, seed=4)[0])
    assert not np.array_equal(whole[0][0], whole[0][1])


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (1.0, 6), (0.01, 1)])
def test_the_number_of_corrupted_patches(share: float, count: int) -> None:
    assert corruption(np.arange(3), 6, share, seed=0)[0].shape == (3, count)


def test_three_bits_of_each_colour() -> None:
    """A patch of one colour each: 0 is level 0, 1 is level 7, and 1/8 begins level 1."""
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.125, 0.5, 0.99], [0.124, 0.49, 0.26]])
    pixels = colours.T.reshape(1, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    mean, std = (0.25, 0.5, 0.25), (0.5, 0.25, 0.5)
    images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = [[0, 511, 1 * 64 + 4 * 8 + 7, 0 * 64 + 3 * 8 + 2]]
    assert mean_colours(images, (4, 4), mean, std).tolist() == expected


def test_the_mean_colour_of_a_patch_counts() -> None:
    pixels = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    found = mean_colours((pixels - 0.5) / 0.5, (4, 6), HALF, HALF)
    for image in range(2):
        for row in range(2):
            for column in range(2):
                block = pixels[image, :, row * 4 : row * 4 + 4, column * 6 : column * 6 + 6].mean((1, 2))
                red, green, blue = (int(value * 8) for value in block)
                assert found[image, row * 2 + column] == 64 * red + 8 * green + blue


def masked_model() -> Any:
    model = build_model(small_config(mask_token=True, head_init="normal"), 512)
    init_weights(model, 0)
    return model


def objective(model: Any) -> MaskedPatches:
    context = Context(seed=5, mean=HALF, std=HALF, patch=model.shape.patch, grid=model.shape.grid)
    built = build_objective(settings_of(name="masked_patches"), 512, context)
    assert isinstance(built, MaskedPatches)
    return built


def test_the_loss_is_the_cross_entropy_of_the_corrupted_patches() -> None:
    model = masked_model()
    images, slots = torch.rand(4, 3, *model.shape.img_size) * 2 - 1, torch.arange(10, 14)
    loss = objective(model)(model, MicroBatch(images, torch.zeros(4, 1, dtype=torch.int64), slots=slots))
    positions, sources = (torch.from_numpy(part) for part in corruption(slots.numpy(), 24, 0.5, seed=5))
    logits = model(images, None, Corruption(positions, sources))
    colours = mean_colours(images, model.shape.patch, HALF, HALF)
    losses = [F.cross_entropy(logits[i, j], colours[i, positions[i, j]]) for i in range(4) for j in range(12)]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_a_hidden_patch_cannot_be_seen() -> None:
    """Pixels below the [mask] embedding do not change the output."""
    model = masked_model().eval()
    images = torch.rand(1, 3, *model.shape.img_size)
    hidden = Corruption(torch.tensor([[0, 7]]), torch.tensor([[-1, -1]]))
    changed = images.clone()
    changed[..., :8, :8] = 0.5  # patch 0

    def logits(x: Tensor, given: Corruption) -> Tensor:
        return model(x, None, given)

    assert torch.equal(logits(images, hidden), logits(changed, hidden))
    shown = Corruption(torch.tensor([[0, 7]]), torch.tensor([[0, 7]]))
    assert not torch.allclose(logits(images, shown), logits(changed, shown))


def test_it_needs_patches() -> None:
    with pytest.raises(ConfigError, match=r"masked_patches needs model\.name: vit"):
        build_objective(settings_of(name="masked_patches"), 512)
