"""Labels as dense targets."""

from __future__ import annotations

import pytest
import torch

from pretrain.objectives.targets import dense_targets


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
