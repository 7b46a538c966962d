"""Cross-entropy against torch's and against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.errors import DataError
from pretrain.objectives.protocol import MicroBatch
from pretrain.objectives.softmax import Softmax
from tests.unit.objectives.batches import images, linear_model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_equal_torchs(smoothing: float) -> None:
    model, x, labels = linear_model(7), images(6), torch.arange(6)[:, None]
    loss = Softmax(smoothing)(model, MicroBatch(x, labels))
    loss.backward()
    grad = model.head.weight.grad.clone()
    model.zero_grad()
    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(model(x), labels[:, 0])
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(grad, model.head.weight.grad)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    model, x, labels = linear_model(5), images(4), torch.tensor([[0], [4], [2], [2]])
    targets = nn.functional.one_hot(labels[:, 0], 5) * 0.8 + 0.2 / 5
    expected = -(targets * model(x).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Softmax(0.2)(model, MicroBatch(x, labels)), expected)


def test_drop_path_reaches_the_model() -> None:
    model, x, labels = linear_model(5), images(2), torch.zeros(2, 1, dtype=torch.int64)
    scaled = Softmax()(model, MicroBatch(x, labels, torch.full((2, 1, 1), 1.5)))
    torch.testing.assert_close(scaled, nn.functional.cross_entropy(3.0 * model(x), labels[:, 0]))


def test_the_loss_is_fp32_whatever_the_logits_are() -> None:
    labels = torch.tensor([[1], [0]])
    logits = torch.randn(2, 3).bfloat16()
    loss = Softmax()(lambda x, drop_path: logits, MicroBatch(images(2), labels))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nn.functional.cross_entropy(logits.float(), labels[:, 0]))


def test_several_labels_are_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"up to 2; use objective\.name: sigmoid"):
        Softmax()(linear_model(5), MicroBatch(images(1), torch.tensor([[1, 2]])))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_targets_go_before_the_labels(smoothing: float) -> None:
    """Of timm's mixup: λ of one smoothed label and 1 − λ of the other."""
    from timm.data.mixup import mixup_target
    from timm.loss import SoftTargetCrossEntropy

    model, x, labels = linear_model(7), images(6), torch.arange(6)
    shares = 0.7 * nn.functional.one_hot(labels, 7) + 0.3 * nn.functional.one_hot(labels.flip(0), 7)
    loss = Softmax(smoothing)(model, MicroBatch(x, torch.zeros(6, 1, dtype=torch.int64), targets=shares))
    expected = SoftTargetCrossEntropy()(model(x), mixup_target(labels, 7, lam=0.7, smoothing=smoothing))
    torch.testing.assert_close(loss, expected)
