"""Intersection over union and pixel accuracy are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from pretrain.evaluation.segmentation import confusion, overlap, per_class_iou

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


def test_nothing_to_judge_by() -> None:
    assert overlap(np.zeros((3, 3), np.int64)) == {"mIoU": 0.0, "pixel_accuracy": 0.0, "num_classes": 0}
