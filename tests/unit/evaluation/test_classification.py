"""Accuracy and average precision against scikit-learn's, on one rank and on several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from pretrain.evaluation.classification import MeanAveragePrecision, TopK, average_precision
from tests.pool import Pool

LOGITS = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3], [3, 4, 5, 6, 7, 8, 9], [0, 1, 0, 2, 0, 3, 9]])


def counted(logits: torch.Tensor, labels: list[list[int]], valid: list[bool]) -> dict[str, float]:
    accumulator = TopK()
    accumulator.update(logits, torch.tensor(labels), torch.tensor(valid))
    return accumulator.result()


@pytest.mark.parametrize(
    ("labels", "valid", "expected"),
    [
        ([[0], [6], [6]], [True, True, True], (3, 3, 3)),
        ([[1], [6], [0]], [True, True, True], (1, 2, 3)),
        ([[0], [6], [6]], [True, True, False], (2, 2, 2)),
        ([[6], [0], [6]], [False, False, True], (1, 1, 1)),
        ([[4], [5], [5]], [True, True, True], (0, 3, 3)),
        ([[5], [1], [6]], [True, True, True], (1, 1, 3)),
        ([[3, 0], [-1, 6], [1, -1]], [True, True, True], (2, 3, 3)),
        ([[-1, -1], [5, 6], [6, 6]], [True, True, True], (2, 2, 3)),
        ([[5, 6], [0, 1], [-1, -1]], [True, True, True], (0, 0, 3)),
    ],
)
def test_hits(labels: list[list[int]], valid: list[bool], expected: tuple[int, int, int]) -> None:
    top1, top5, num_samples = expected
    result = counted(LOGITS, labels, valid)
    assert result == {"top1": top1 / num_samples, "top5": top5 / num_samples, "num_samples": num_samples}


def test_equals_scikit_learn_over_many_batches() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(1000, 20)), rng.integers(0, 20, 1000)
    accumulator = TopK(ks=(1, 3, 5))
    for start in range(0, 1000, 64):
        rows = slice(start, start + 64)
        size = len(labels[rows])
        logits = torch.full((64, 20), float("nan"))  # padding holds anything
        logits[:size] = torch.from_numpy(scores[rows])
        padded = torch.full((64, 1), -1)
        padded[:size, 0] = torch.from_numpy(labels[rows])
        accumulator.update(logits, padded, torch.arange(64) < size)
    result = accumulator.result()
    assert result["num_samples"] == 1000
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, torch.from_numpy(scores).float(), k=k)
        assert result[f"top{k}"] == pytest.approx(expected, abs=1e-12)


def test_fewer_classes_than_k() -> None:
    assert counted(torch.tensor([[1.0, 0.0]]), [[1]], [True]) == {"top1": 0.0, "top5": 1.0, "num_samples": 1}


def test_loss_is_the_mean_over_what_counts() -> None:
    accumulator = TopK()
    labels, losses = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([1.0, 4.0, float("nan")])
    accumulator.update(LOGITS, labels, torch.tensor([True, True, False]), losses)
    accumulator.update(LOGITS, labels, torch.tensor([True, False, False]), losses)
    assert accumulator.result()["loss"] == pytest.approx(2.0)


def test_counts_past_what_fp32_can_hold_are_exact() -> None:
    accumulator = TopK()
    accumulator._samples += 2**24
    accumulator._hits += 2**24
    accumulator.update(LOGITS[:1], torch.tensor([[0]]), torch.tensor([True]))
    result = accumulator.result()
    assert (result["num_samples"], result["top1"]) == (2**24 + 1, 1.0)


def test_nothing_counted_is_zero() -> None:
    assert TopK().result() == {"top1": 0.0, "top5": 0.0, "num_samples": 0}


def test_update_reads_nothing_on_the_host() -> None:
    accumulator = TopK("meta")
    with torch.device("meta"):
        accumulator.update(
            torch.empty(4, 7), torch.empty(4, 2, dtype=torch.int64), torch.empty(4, dtype=torch.bool), torch.empty(4)
        )
    assert accumulator._hits.is_meta and accumulator._loss.is_meta


def count_every_other_image() -> dict[str, float]:
    import torch.distributed as dist

    labels = torch.tensor([[0], [6], [0]])
    rank, world = dist.get_rank(), dist.get_world_size()
    accumulator = TopK()
    for index in range(rank, 4, world):  # 3 images for 2 ranks: one is padding
        row = min(index, 2)
        accumulator.update(
            LOGITS[row : row + 1], labels[row : row + 1], torch.tensor([index < 3]), torch.tensor([float(index)])
        )
    return accumulator.result()


def test_two_ranks_count_each_image_once(pool2: Pool) -> None:
    expected = {"top1": 2 / 3, "top5": 2 / 3, "num_samples": 3, "loss": 1.0}
    for result in pool2.run(count_every_other_image):
        assert result == pytest.approx(expected)


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
