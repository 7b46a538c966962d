"""Mean average precision equals scikit-learn's, to the bit whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import average_precision_score

from pretrain.evaluation.average_precision import MeanAveragePrecision, average_precision
from tests.pool import Pool

NUM, CLASSES = 61, 9


def case(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) and multi-hot targets; class 4 is shown by no image, class 5 by all."""
    rng = np.random.default_rng(1)
    targets = rng.random((NUM, CLASSES)) < 0.2
    targets[:, 4], targets[:, 5] = False, True
    scores = rng.normal(size=(NUM, CLASSES)).astype(np.float32) + targets
    return (np.round(scores * 2) / 2 if ties else scores).astype(np.float32), targets


@pytest.mark.parametrize("ties", [False, True])
def test_each_class_equals_scikit_learn(ties: bool) -> None:
    scores, targets = case(ties)
    shuffled = np.random.default_rng(2).permutation(NUM)
    for column in range(CLASSES):
        ours = average_precision(scores[:, column], targets[:, column])
        if not targets[:, column].any():
            assert np.isnan(ours)
            continue
        assert ours == pytest.approx(average_precision_score(targets[:, column], scores[:, column]), abs=1e-12)
        assert ours == average_precision(scores[shuffled, column], targets[shuffled, column]), "order has no effect"


def measured(ties: bool, micro_batch_size: int = 4) -> dict[str, float]:
    """Each rank brings every R-th image, in batches of which the last ones are padding with NaN."""
    scores, targets = case(ties)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    most = int(targets.sum(1).max())
    labels = np.full((NUM, most), -1)
    for row, own in enumerate(targets):
        labels[row, : own.sum()] = np.flatnonzero(own)
    meter = MeanAveragePrecision(CLASSES)
    for start in range(0, -(-NUM // world), micro_batch_size):
        index = torch.arange(start, start + micro_batch_size) * world + rank
        valid = index < NUM
        index = index.clamp(max=NUM - 1)
        logits = torch.from_numpy(scores)[index].masked_fill(~valid[:, None], float("nan"))
        meter.update(logits, torch.from_numpy(labels)[index], valid)
    return meter.result()


@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_equals_scikit_learn_on_any_number_of_ranks(pool2: Pool, pool4: Pool, ties: bool) -> None:
    scores, targets = case(ties)
    shown = targets.any(0)
    alone = measured(ties)
    expected = average_precision_score(targets[:, shown], scores[:, shown], average="macro")
    assert alone == {"mAP": pytest.approx(expected, abs=1e-12), "num_classes": CLASSES - 1}
    for pool in (pool2, pool4):
        assert pool.run(measured, ties) == [alone] * pool.size


def test_nothing_measured() -> None:
    assert MeanAveragePrecision(3).result() == {"mAP": 0.0, "num_classes": 3}
