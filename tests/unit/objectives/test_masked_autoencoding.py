"""Masked autoencoding: its loss by a loop over the hidden patches, and settings that do not fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.objectives.masked_autoencoding import MaskedAutoencoding
from pretrain.objectives.protocol import MicroBatch
from tests.unit.config.test_loader import MINIMAL
from tests.unit.objectives.test_registry import ENCODER

SLOTS = torch.tensor([4, 9, 2])


def predicted(x: Tensor, drop_path: Tensor | None, kept: Tensor) -> Tensor:
    return torch.randn(len(x), ENCODER.num_patches, 192, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_that_of_hidden_patches(normalised: bool) -> None:
    x = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    kept = kept_patches(SLOTS.numpy(), ENCODER, seed=5)
    assert kept is not None and kept.shape == (3, 6)
    errors = []
    for image in range(3):
        for patch in sorted(set(range(24)) - set(kept[image].tolist())):
            row, column = divmod(patch, 6)
            pixels = x[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(1, 2, 0).flatten().numpy()
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6) if normalised else pixels
            errors.append(np.mean((predicted(x, None, kept)[image, patch].numpy() - target) ** 2))
    objective = MaskedAutoencoding(ENCODER, 5, normalised)
    given = MicroBatch(x, torch.zeros(3, 1), slots=SLOTS, kept=kept)
    assert objective(predicted, given).item() == pytest.approx(np.mean(errors), rel=1e-5)
    of_slots = MicroBatch(x, torch.zeros(3, 1), slots=SLOTS)
    assert objective(predicted, of_slots) == objective(predicted, given), (
        "the probe batch of a checkpoint hides the same"
    )


MAE = {"objective.name": "mae", "model.decoder": "{}", "model.patch_drop": "0.75", "evaluation": "null"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.decoder": "null"}, r"objective.name: mae needs model.decoder: \{\}"),
        ({"objective.name": "softmax"}, "model.decoder belongs to objective.name: mae; otherwise"),
        ({"model.patch_drop": "0"}, "reconstructs the patches that model.patch_drop leaves out, which is 0"),
        ({"model.pool": "avg_norm"}, "decoder does not work with pool: avg_norm"),
        ({"model.variant": "R50+B/16"}, "decoder does not work with a hybrid"),
        ({"model.decoder": "{embed_dim: 100, num_heads: 16}"}, "embed_dim: 100 must be divisible by 4"),
        ({"objective.label_smoothing": "0.1"}, "label_smoothing belongs to name: softmax"),
        (
            {"objective.normalised_pixels": "false", "objective.name": "softmax"},
            "normalised_pixels belongs to name: mae",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "x.yaml").write_text(MINIMAL)
    settings = [f"{key}={value}" for key, value in MAE.items()]
    assert load_experiment(tmp_path / "x.yaml", overrides=settings).experiment.num_outputs == 0
    changed = [f"{key}={value}" for key, value in (MAE | changes).items()]
    with pytest.raises(ConfigError, match=message):
        load_experiment(tmp_path / "x.yaml", overrides=changed)
