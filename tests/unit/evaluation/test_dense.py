"""MAE, RMSE and R² of vectors, and intersection over union and accuracy of pixels, are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    jaccard_score,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from pretrain.errors import DataError
from pretrain.evaluation.dense import check_shown, confusion, errors, overlap, per_class_iou

TRUE = np.random.default_rng(0).normal([5.0, -300.0], [1.0, 40.0], size=(50, 2))
CONSTANT = np.column_stack([TRUE[:, 0], np.full(50, 3.0)])
CASES = {
    "noisy": (TRUE, TRUE + np.random.default_rng(1).normal(0, [0.5, 30], size=TRUE.shape)),
    "worse than the mean": (TRUE, TRUE[::-1].copy()),
    "one number": (TRUE[:, :1], TRUE[:, :1] + 0.1),
    "constant, missed": (CONSTANT, CONSTANT + 0.1),
    "constant, met": (CONSTANT, np.column_stack([CONSTANT[:, 0] + 0.1, CONSTANT[:, 1]])),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_scikit_learn(case: str) -> None:
    true, predicted = CASES[case]
    found = errors(predicted, true)
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(true, predicted))
    assert found["r2"] == pytest.approx(r2_score(true, predicted))


K = 6


@pytest.mark.parametrize("absent", [(), (4,), (0, 5)])
def test_overlap_is_that_of_scikit_learn(absent: tuple[int, ...]) -> None:
    generator = np.random.default_rng(len(absent))
    classes = [k for k in range(K) if k not in absent]
    true, found = generator.choice(classes, (2, 5, 8, 9)).astype(np.uint8)
    true[generator.random(true.shape) < 0.2] = 255
    matrix = confusion(torch.from_numpy(found), torch.from_numpy(true), K).numpy()
    counts = true != 255
    np.testing.assert_array_equal(matrix, confusion_matrix(true[counts], found[counts], labels=range(K)))
    each = jaccard_score(true[counts], found[counts], labels=classes, average=None)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(per_class_iou(matrix)[classes], each)
    assert np.isnan(per_class_iou(matrix)[list(absent)]).all()
    figures = overlap(matrix)
    assert figures["mIoU"] == pytest.approx(np.mean(each))
    assert figures["pixel_accuracy"] == pytest.approx(accuracy_score(true[counts], found[counts]))
    assert figures["num_classes"] == len(classes)


@pytest.mark.parametrize(
    ("true", "message"),
    [([255, 255], "no pixel of its masks has a class"), ([1, 255], "all pixels of its masks are class 1")],
)
def test_nothing_to_judge_by(true: list[int], message: str) -> None:
    """A model that answers as these masks would have mIoU 1."""
    found = torch.tensor([[[1, 1]]])
    matrix = confusion(found, torch.tensor([[true]]), 3).numpy()
    with pytest.raises(DataError, match=f"data/val: {message}"):
        check_shown(matrix, "data/val")
    check_shown(confusion(found, torch.tensor([[[1, 2]]]), 3).numpy(), "data/val")
    check_shown(confusion(torch.tensor([[[0]]]), torch.tensor([[[0]]]), 1).numpy(), "one class")
