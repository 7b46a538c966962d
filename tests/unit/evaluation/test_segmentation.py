"""Intersection over union and pixel accuracy are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from pretrain.errors import DataError
from pretrain.evaluation.segmentation import check_shown, confusion, overlap, per_class_iou

K = 6


@pytest.mark.parametrize("absent", [(), (4,), (0, 5)])
def test_figures_are_those_of_scikit_learn(absent: tuple[int, ...]) -> None:
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
