"""Softmax and binary cross-entropy against torch's and against their definitions, and multi-hot targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from pretrain.errors import ConfigError, DataError
from pretrain.objectives.class_weights import ClassCounts, absent_to_present, by_class, weights_of
from pretrain.objectives.classification import Sigmoid, Softmax, dense_targets
from pretrain.objectives.protocol import MicroBatch
from tests.unit.objectives.batches import images, linear_model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_and_its_gradients_equal_torchs(smoothing: float) -> None:
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


def test_drop_path_reaches_the_model_of_softmax() -> None:
    model, x, labels = linear_model(5), images(2), torch.zeros(2, 1, dtype=torch.int64)
    scaled = Softmax()(model, MicroBatch(x, labels, torch.full((2, 1, 1), 1.5)))
    torch.testing.assert_close(scaled, nn.functional.cross_entropy(3.0 * model(x), labels[:, 0]))


def test_the_softmax_loss_is_fp32_whatever_the_logits_are() -> None:
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


LABELS = torch.tensor([[0, -1, -1], [1, 2, 6], [6, 6, -1], [-1, -1, -1]])
TARGETS = torch.tensor(
    [[1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.float32
)


@pytest.mark.parametrize(("reduction", "scale"), [("sum_classes", 7), ("mean", 1)])
def test_sigmoid_and_its_gradients_equal_torchs_times_the_scale(reduction: Any, scale: int) -> None:
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


def test_the_sigmoid_loss_is_fp32_whatever_the_logits_are() -> None:
    logits = torch.randn(4, 7).bfloat16()
    loss = Sigmoid()(lambda x, drop_path: logits, MicroBatch(images(4), LABELS))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, 7 * nn.BCEWithLogitsLoss()(logits.float(), TARGETS))


def test_drop_path_reaches_the_model_of_sigmoid() -> None:
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


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([[2]], [[0, 0, 1, 0]]),
        ([[0, 3]], [[1, 0, 0, 1]]),
        ([[3, -1, -1]], [[0, 0, 0, 1]]),
        ([[-1, 1]], [[0, 1, 0, 0]]),
        ([[-1, -1]], [[0, 0, 0, 0]]),
        ([[1, 1]], [[0, 1, 0, 0]]),
        ([[0, -1], [1, 2]], [[1, 0, 0, 0], [0, 1, 1, 0]]),
    ],
)
def test_multi_hot(labels: list[list[int]], expected: list[list[float]]) -> None:
    targets = dense_targets(torch.tensor(labels), 4)
    assert targets.dtype == torch.float32
    assert targets.tolist() == expected


def test_one_label_each_is_torchs_one_hot() -> None:
    labels = torch.randint(0, 9, (50, 1))
    assert torch.equal(dense_targets(labels, 9), torch.nn.functional.one_hot(labels[:, 0], 9).float())


@pytest.mark.parametrize("reduction", ["sum_classes", "mean"])
def test_smoothed_binary_targets_are_those_of_two_classes(reduction: Any) -> None:
    """A sigmoid is a softmax over absent and present, whose label smoothing is torch's."""
    model, x, labels = linear_model(5), images(6), torch.tensor([[0, 2], [1, -1], [-1, -1], [3, 4], [4, -1], [2, 0]])
    loss = Sigmoid(reduction, label_smoothing=0.2)(model, MicroBatch(x, labels))
    logits = model(x)
    pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, 1)
    present = dense_targets(labels, 5).long().flatten()
    expected = nn.functional.cross_entropy(pairs, present, label_smoothing=0.2)
    torch.testing.assert_close(loss, expected * (5 if reduction == "sum_classes" else 1))


def test_pos_weight_is_torchs() -> None:
    model, x, labels = linear_model(4), images(3), torch.tensor([[0, 2], [1, -1], [-1, -1]])
    weights = (0.5, 3.0, 1.0, 7.0)
    loss = Sigmoid("mean", label_smoothing=0.1, pos_weight=weights)(model, MicroBatch(x, labels))
    targets = dense_targets(labels, 4) * 0.9 + 0.05
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))(model(x), targets)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_are_torchs_averaged_over_the_images(smoothing: float, mixed: bool) -> None:
    """So that two halves of a batch have its loss as their mean, whatever the classes in each."""
    model, x, labels = linear_model(3), images(4), torch.tensor([[0], [2], [2], [1]])
    shares = torch.rand(4, 3).softmax(1) if mixed else None
    objective = Softmax(smoothing, (0.5, 1.0, 4.0))
    loss = objective(model, MicroBatch(x, labels, targets=shares))
    torchs = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 4.0]), label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss, torchs(model(x), labels[:, 0] if shares is None else shares).mean())
    halves = [
        objective(model, MicroBatch(x[part], labels[part], targets=None if shares is None else shares[part]))
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(loss, (halves[0] + halves[1]) / 2)


def test_balanced_weights_are_scikit_learns_and_torchs() -> None:
    labels = [0] * 5 + [1] * 2 + [2] * 13
    counts = ClassCounts((5, 2, 13), 20)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    assert weights_of("class_weights", "balanced", counts, by_class) == pytest.approx(tuple(expected))
    assert weights_of("pos_weight", "balanced", counts, absent_to_present) == (3.0, 9.0, 7 / 13)
    assert weights_of("pos_weight", (1.0, 2.0, 3.0), None, absent_to_present) == (1.0, 2.0, 3.0)
    with pytest.raises(ConfigError, match=r"objective\.class_weights: balanced .* no image, such as class 1 "):
        weights_of("class_weights", "balanced", ClassCounts((5, 0), 5), by_class)
    with pytest.raises(ConfigError, match=r"objective\.pos_weight: balanced .* every image, such as class 0"):
        weights_of("pos_weight", "balanced", ClassCounts((5, 1), 5), absent_to_present)
