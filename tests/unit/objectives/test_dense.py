"""Regression against torch's losses of targets standardised by hand; segmentation against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.models.metadata import TargetScale
from pretrain.objectives.dense import Regression, Segmentation
from pretrain.objectives.protocol import MicroBatch
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
def test_regression_is_torchs_of_standardised_targets(loss, beta, expected) -> None:
    model, x = linear_model(3), images(4)
    wanted = (TARGETS.double() - torch.tensor(MEAN).double()) / torch.tensor([12.0, 0.01, 1.0]).double()
    labels = torch.zeros(4, 0, dtype=torch.int64)
    found = Regression(SCALE, loss, beta)(model, MicroBatch(x, labels, targets=TARGETS))
    torch.testing.assert_close(found.double(), expected(model(x).double(), wanted), rtol=1e-4, atol=1e-6)
    scaled = Regression(SCALE, loss, beta)(model, MicroBatch(x, labels, torch.full((4, 1, 1), 0.5), TARGETS))
    torch.testing.assert_close(scaled.double(), expected(2 * model(x).double(), wanted), rtol=1e-4, atol=1e-6)


def test_restoring_undoes_standardising() -> None:
    torch.testing.assert_close(SCALE.restored(SCALE.standardised(TARGETS)), TARGETS, rtol=1e-6, atol=1e-6)


GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 5, 4, 6, generator=GENERATOR)
MASKS = torch.randint(5, (3, 4, 6), generator=GENERATOR, dtype=torch.uint8)


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    labels = torch.zeros(len(logits), 0, dtype=torch.int64)
    return Segmentation()(lambda images, drop_path: logits, MicroBatch(torch.zeros(len(logits)), labels, targets=masks))


def test_segmentation_is_torchs() -> None:
    torch.testing.assert_close(segmentation_loss(LOGITS, MASKS), F.cross_entropy(LOGITS, MASKS.long()))


def test_pixels_without_a_class_count_as_nothing_but_are_counted() -> None:
    masks = MASKS.clone()
    masks[0] = 255
    masks[1, :2] = 255
    chosen = masks != 255
    wanted = F.cross_entropy(LOGITS.movedim(1, 3)[chosen], masks[chosen].long(), reduction="sum") / masks.numel()
    torch.testing.assert_close(segmentation_loss(LOGITS, masks), wanted)
    parts = torch.stack([segmentation_loss(LOGITS[k : k + 1], masks[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(segmentation_loss(LOGITS, masks), parts.mean())
    assert segmentation_loss(LOGITS[:1], masks[:1]) == 0
