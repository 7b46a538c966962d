"""Binary cross-entropy against torch's, in both scales."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.sigmoid import Sigmoid
from tests.unit.objectives.batches import images, linear_model

LABELS = torch.tensor([[0, -1, -1], [1, 2, 6], [6, 6, -1], [-1, -1, -1]])
TARGETS = torch.tensor(
    [[1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.float32
)


@pytest.mark.parametrize(("reduction", "scale"), [("sum_classes", 7), ("mean", 1)])
def test_loss_and_gradients_equal_torchs_times_the_scale(reduction: Any, scale: int) -> None:
    """torch's default is the mean over images and classes; the sum over 7 classes is 7 times that."""
    model, x = linear_model(7), images(4)
    loss = Sigmoid(reduction)(model, MicroBatch(x, LABELS))
    loss.backward()
    grad = model.head.weight.grad.clone()
    model.zero_grad()
    expected = scale * nn.BCEWithLogitsLoss()(model(x), TARGETS)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, model.head.weight.grad)


def test_loss_of_the_papers_start_is_exact() -> None:
    """A head of zeros with bias −10 over 21,843 classes and one label: ln(1 + e¹⁰) + 21,842 · ln(1 + e⁻¹⁰) ≈ 10.99."""
    logits = torch.full((2, 21_843), -10.0)
    loss = Sigmoid()(lambda x, drop_path: logits, MicroBatch(images(2), torch.tensor([[5], [7]])))
    expected = math.log1p(math.exp(10)) + 21_842 * math.log1p(math.exp(-10))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    targets = torch.nn.functional.one_hot(torch.tensor([5, 7]), 21_843).float()
    double = 21_843 * nn.BCEWithLogitsLoss()(logits.double(), targets.double())
    assert loss.item() == pytest.approx(double.item(), rel=1e-5)


def test_the_loss_is_fp32_whatever_the_logits_are() -> None:
    logits = torch.randn(4, 7).bfloat16()
    loss = Sigmoid()(lambda x, drop_path: logits, MicroBatch(images(4), LABELS))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, 7 * nn.BCEWithLogitsLoss()(logits.float(), TARGETS))


def test_drop_path_reaches_the_model() -> None:
    model, x = linear_model(7), images(4)
    scaled = Sigmoid("mean")(model, MicroBatch(x, LABELS, torch.full((4, 1, 1), 0.5)))
    torch.testing.assert_close(scaled, nn.BCEWithLogitsLoss()(2.0 * model(x), TARGETS))


@pytest.mark.parametrize("binarise", [False, True])
def test_mixed_targets_are_taken_as_they_are_or_made_binary(binarise: bool) -> None:
    """As timm's loss with DeiT III's threshold of 0."""
    from timm.loss import BinaryCrossEntropy

    model, x = linear_model(7), images(4)
    shares = 0.8 * TARGETS + 0.2 * TARGETS.flip(0)
    loss = Sigmoid("mean", binarise)(model, MicroBatch(x, LABELS, targets=shares))
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0 if binarise else None)
    torch.testing.assert_close(loss, theirs(model(x), shares))
    if not binarise:
        assert (shares == 0.2).any()
