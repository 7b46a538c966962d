"""Token dropping as a function of the draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.variants import ViTShape, resolve
from tests.golden.twins import small_config


def shape(rate: float) -> ViTShape:
    return resolve(small_config(patch_drop=rate))


def kept(slots: list[int], rate: float, seed: int = 0) -> torch.Tensor:
    made = kept_patches(np.asarray(slots), shape(rate), seed=seed)
    assert made is not None
    return made


def test_each_image_keeps_its_own_patches_in_order() -> None:
    chosen = kept(list(range(50)), 0.5)
    assert chosen.shape == (50, 12) and chosen.dtype == torch.int64
    assert (chosen.diff(dim=1) > 0).all() and chosen.min() >= 0 and chosen.max() < 24
    assert len({tuple(row) for row in chosen.tolist()}) == 50


def test_the_choice_is_a_function_of_seed_and_slot() -> None:
    """So any micro-batch, rank or resume draws the same."""
    together = kept([7, 8, 9, 10], 0.75)
    assert torch.equal(torch.cat([kept([7], 0.75), kept([8, 9], 0.75), kept([10], 0.75)]), together)
    assert not torch.equal(kept([7, 8, 9, 10], 0.75, seed=1), together)


def test_every_patch_is_kept_equally_often() -> None:
    counts = kept(list(range(4000)), 0.25).flatten().bincount(minlength=24)
    expected, deviation = 4000 * 0.75, np.sqrt(4000 * 0.75 * 0.25)
    assert (counts - expected).abs().max() < 4.5 * deviation


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 0.99])
def test_the_number_of_kept_patches_is_timms(rate: float) -> None:
    from timm.layers.patch_dropout import patch_dropout_forward

    theirs, _ = patch_dropout_forward(torch.zeros(1, 1 + 24, 3), rate, 1, ordered=True, training=True)
    assert shape(rate).num_trained_tokens == theirs.shape[1]


def test_nothing_is_drawn_where_nothing_is_dropped() -> None:
    assert kept_patches(np.arange(3), shape(0.0), seed=0) is None
