"""A second view of each sample: its own crop, the same on every layout and in every process, shown to the teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.assembly.feeder import Feeder
from pretrain.config.loader import load_experiment
from pretrain.data.batch import Batch
from pretrain.data.images.augment import TrainTransform
from pretrain.data.storage.index import ShardTable
from pretrain.data.stream import TrainStream
from pretrain.data.workers.reader import ShardReader
from pretrain.errors import ConfigError
from pretrain.objectives.feature_distillation import FeatureDistillation
from pretrain.objectives.protocol import MicroBatch
from tests.distributed import training
from tests.unit.config.test_loader import MINIMAL
from tests.unit.data.sets import experiment, write_set
from tests.unit.data.test_stream import AUGMENTED, drawn
from tests.unit.data.workers.test_reader import damage

NUM = 40
DISTILLED: dict[str, Any] = {
    "objective": {"name": "feature_distillation", "teacher": "t", "width": 8, "teacher_view": "second"},
    "model__head_init": "normal",
}
TWO = {**AUGMENTED, **DISTILLED, "data__lanes": 4}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_set(tmp_path_factory.mktemp("views") / "train", [NUM], noise=True, image_format="jpeg")


def seconds(ranks: list[list[Batch]]) -> dict[int, bytes]:
    """slot → the second view."""
    found: dict[int, bytes] = {}
    for batch in (batch for batches in ranks for batch in batches):
        assert batch.second is not None
        found |= {int(slot): image.numpy().tobytes() for slot, image in zip(batch.slots, batch.second, strict=True)}
    return found


def test_the_second_view_is_another_crop_and_the_first_does_not_change(noisy: Any) -> None:
    config = experiment(noisy, NUM, **TWO)
    (one,), (two,) = drawn(experiment(noisy, NUM, **AUGMENTED, data__lanes=4), 1, 16, 1), drawn(config, 1, 16, 1)
    assert one[0].second is None and torch.equal(one[0].images, two[0].images)
    second = two[0].second
    assert second is not None and second.shape == two[0].images.shape
    differs = (second != two[0].images).flatten(1).any(1)
    assert differs.float().mean() > 0.9


def test_both_views_have_the_same_distribution() -> None:
    """The numbers of the views are independent of each other, and of one law."""
    config = experiment("none", NUM, **AUGMENTED).data.augmentation
    ids = np.arange(4000)
    numbers = TrainTransform(config, 8, 8, 3, views=2).numbers(np.zeros_like(ids), ids)
    first, second = np.split(numbers, 2, axis=1)
    assert np.array_equal(first, TrainTransform(config, 8, 8, 3).numbers(np.zeros_like(ids), ids))
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.06
    np.testing.assert_allclose(np.quantile(second, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_any_layout_and_any_processes_give_the_same_second_views(noisy: Any) -> None:
    config = experiment(noisy, NUM, **TWO)
    expected = seconds(drawn(config, 1, 16, 3))
    assert len(expected) == 48 and len(set(expected.values())) == 48
    assert seconds(drawn(config, 2, 4, 3)) == expected
    assert seconds(drawn(experiment(noisy, NUM, cluster__num_workers=2, **TWO), 2, 8, 3)) == expected
    resumed = seconds([list(TrainStream(config, 0, 1, 16).iterate(32, 1))])
    assert resumed == {slot: expected[slot] for slot in range(32, 48)}


def test_a_bad_sample_is_replaced_in_both_views(tmp_path: Path) -> None:
    """By its neighbour, with the crop of the bad one."""
    folder = write_set(tmp_path / "set", [NUM], noise=True, image_format="jpeg")
    config = experiment(folder, NUM, **TWO, data__max_bad_sample_rate=0.5)
    neighbour = ShardReader(ShardTable.load(folder)).read(8)
    damage(folder, 7)
    batches = list(TrainStream(config, 0, 1, 16).iterate(0, 2))
    (batch,) = (each for each in batches if each.faults)
    transform = TrainTransform(config.data.augmentation, 8, 8, config.seed, config.data.mean, views=2)
    numbers = transform.numbers(np.zeros(1, dtype=np.int64), np.array([7]))
    view = transform.pair(neighbour, numbers[0])
    assert batch.second is not None and view.second is not None
    rows = batch.images.permute(0, 2, 3, 1).numpy()
    (row,) = (number for number, pixels in enumerate(rows) if np.array_equal(pixels, view.pixels))
    assert batch.sample_ids[row] == 8 and np.array_equal(batch.second[row].permute(1, 2, 0).numpy(), view.second)


def test_the_second_view_is_normalised_and_erased_on_its_own() -> None:
    config = training.experiment(
        **DISTILLED, model__drop_path=0.0, data__train_transform={"crop": "inception", "random_erasing": {"prob": 1.0}}
    )
    pixels = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    numbers = torch.arange(4)
    batch = Batch(pixels, numbers[:, None], numbers, numbers, torch.ones(4, dtype=torch.bool), second=pixels.clone())
    made = Feeder(config, torch.nn.Identity(), None, torch.device("cpu")).prepare(batch)  # type: ignore[arg-type]
    assert made.second is not None and made.second.dtype == torch.float32
    for view in (made.images, made.second):
        assert ((view != 1).flatten(1).any(1)).all() and (view == 1).any()
    assert not torch.equal(made.images == 1, made.second == 1)


def test_the_teacher_sees_the_second_view() -> None:
    seen: list[torch.Tensor] = []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return images.flatten(1)

    first, second = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    batch = MicroBatch(first, torch.zeros(2, 1))
    student = lambda images, drop_path: images.flatten(1)  # noqa: E731
    objective = FeatureDistillation(teacher)
    assert objective(student, batch).item() == pytest.approx(0, abs=1e-6)
    loss = objective(student, replace(batch, second=second))
    expected = 1 - torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).mean()
    torch.testing.assert_close(loss, expected)
    assert seen[0] is first and seen[1] is second


def test_patch_tokens_of_two_crops_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(MINIMAL)
    settings = [
        "objective={name: token_distillation, teacher: t, width: 8, teacher_view: second}",
        "model.head=patches",
    ]
    with pytest.raises(ConfigError, match="teacher_view: second belongs to name: feature_distillation"):
        load_experiment(tmp_path / "x.yaml", overrides=settings)
