"""Which checkpoints stay, as a table."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pretrain.engine.checkpoint_folder import (
    FORMAT_VERSION,
    MARKER,
    complete_checkpoints,
    final_path,
    publish,
    seal,
    step_of,
    temporary_path,
    write_marker,
)
from pretrain.engine.retention import Keeper, Retention
from pretrain.errors import CheckpointError
from tests.faulty_disk import FaultyDisk, using

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


def checkpoint(folder: Path, step: int, **metrics: float) -> Path:
    path = temporary_path(folder, step)
    (path / "slices").mkdir(parents=True)
    (path / "content").write_text(f"state of step {step}")
    content = {"format": FORMAT_VERSION, "step": step, "files": {"content": seal(path / "content")}}
    write_marker(path, content | {"metrics": {name.replace("_", "/"): value for name, value in metrics.items()}})
    publish(path, final_path(folder, step))
    return final_path(folder, step)


def damaged(path: Path) -> Path:
    (path / "content").write_text("something else")
    return path


def left(folder: Path) -> list[int]:
    return [step_of(path) for path in complete_checkpoints(folder)]


def test_a_damaged_one_does_not_count(tmp_path: Path) -> None:
    """A newer one that resume passed over is not a reason to remove the one that it took."""
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    damaged(checkpoint(tmp_path, 6))
    said: list[str] = []
    keeper = Keeper(tmp_path, Retention(1), said.append)
    keeper.prune()
    assert left(tmp_path) == [6, 4]
    assert said == [f"checkpoint {final_path(tmp_path, 6)} does not count: content has 14 bytes instead of 15"]
    keeper.trust(checkpoint(tmp_path, 8))
    keeper.prune()
    assert left(tmp_path) == [8], "what is damaged goes when a newer one is whole"


def test_nothing_goes_where_none_is_whole(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        damaged(checkpoint(tmp_path, step))
    Keeper(tmp_path, Retention(1), print).prune()
    assert left(tmp_path) == [6, 4, 2]


def test_the_best_must_be_whole(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, val_top1=0.5)
    damaged(checkpoint(tmp_path, 4, val_top1=0.9))
    checkpoint(tmp_path, 6, val_top1=0.4)
    keeper = Keeper(tmp_path, Retention(1, keep_best="val/top1"), lambda text: None)
    assert keeper.improves({"val/top1": 0.6}), "the better one cannot be used"
    keeper.prune()
    assert left(tmp_path) == [6, 2]


def test_one_that_takes_the_name_of_another_is_looked_at_anew(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, Retention(1), lambda text: None)
    keeper.trust(checkpoint(tmp_path, 4))
    checkpoint(tmp_path, 2)
    path = checkpoint(tmp_path, 4)
    damaged(path)
    (path / MARKER).touch()
    keeper.prune()
    assert left(tmp_path) == [4, 2]


def test_one_that_cannot_be_read_stays(tmp_path: Path) -> None:
    """Its disk may come back; and what cannot be removed ends nothing."""
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    for at in range(200):
        failing = FaultyDisk("EIO", at)
        with using(failing), contextlib.suppress(CheckpointError):
            Keeper(tmp_path, Retention(2), lambda text: None).prune()
        assert {4, 6} <= set(left(tmp_path)), failing.calls[-1]
        if not failing.has_fired:
            return
        if 2 not in left(tmp_path):
            checkpoint(tmp_path, 2)
    raise AssertionError("the sweep did not end")
