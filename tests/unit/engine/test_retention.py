"""Which checkpoints stay, as a table."""

from __future__ import annotations

import pytest

from pretrain.engine.retention import Retention

MEASURED = {2: {"val/top1": 0.3}, 4: {"val/top1": 0.9}, 6: {}, 8: {"val/top1": 0.9}, 10: {"val/top1": float("nan")}}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Retention(1), {10}),
        (Retention(2), {8, 10}),
        (Retention(9), {2, 4, 6, 8, 10}),
        (Retention(1, keep_every=4), {4, 8, 10}),
        (Retention(1, keep_best="val/top1"), {4, 10}),  # of equals the first; NaN is never the best
        (Retention(1, keep_best="val/loss"), {10}),  # never measured
        (Retention(1, keep_every=6, keep_best="val/top1"), {4, 6, 10}),
    ],
)
def test_kept(rule: Retention, kept: set[int]) -> None:
    assert rule.kept(MEASURED) == kept


def test_the_lowest_loss_is_the_best() -> None:
    rule = Retention(1, keep_best="val/loss")
    assert rule.best({2: {"val/loss": 0.3}, 4: {"val/loss": 0.2}, 6: {"val/loss": 0.4}}) == 4


@pytest.mark.parametrize(("value", "better"), [(0.91, True), (0.9, False), (float("nan"), False)])
def test_improves(value: float, better: bool) -> None:
    assert Retention(1, keep_best="val/top1").improves({"val/top1": value}, MEASURED) is better
    assert Retention(1).improves({"val/top1": value}, MEASURED) is False
    assert Retention(1, keep_best="val/top1").improves({"val/top1": value}, {}) is True
