"""Regression: torch's losses of what is standardised by hand, and the way back to the data's units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.models.metadata import TargetScale
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.regression import Regression
from tests.unit.objectives.batches import images, linear_model

MEAN, STD = [30.0, -0.5, 7.0], [12.0, 0.01, 0.0]  # the last number never changes
SCALE = TargetScale.of(MEAN, STD)
TARGETS = torch.tensor([[18.0, -0.51, 7.0], [54.0, -0.47, 7.0], [30.0, -0.5, 7.0], [31.0, -0.5, 7.0]])


@pytest.mark.parametrize(
    ("loss", "beta", "expected"),
    [
        ("mse", 1.0, F.mse_loss),
        ("l1", 1.0, F.l1_loss),
        ("smooth_l1", 0.5, lambda x, y: F.smooth_l1_loss(x, y, beta=0.5)),
    ],
)
def test_the_loss_is_torchs_of_standardised_targets(loss, beta, expected) -> None:
    model, x = linear_model(3), images(4)
    wanted = (TARGETS.double() - torch.tensor(MEAN).double()) / torch.tensor([12.0, 0.01, 1.0]).double()
    labels = torch.zeros(4, 0, dtype=torch.int64)
    found = Regression(SCALE, loss, beta)(model, MicroBatch(x, labels, targets=TARGETS))
    torch.testing.assert_close(found.double(), expected(model(x).double(), wanted), rtol=1e-4, atol=1e-6)
    scaled = Regression(SCALE, loss, beta)(model, MicroBatch(x, labels, torch.full((4, 1, 1), 0.5), TARGETS))
    torch.testing.assert_close(scaled.double(), expected(2 * model(x).double(), wanted), rtol=1e-4, atol=1e-6)


def test_restoring_undoes_standardising() -> None:
    torch.testing.assert_close(SCALE.restored(SCALE.standardised(TARGETS)), TARGETS, rtol=1e-6, atol=1e-6)
