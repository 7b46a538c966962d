"""Evaluation for other training loops: every readable image once over all ranks, in order, with its own label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.__main__ import main
from pipelines.api import EvaluationSet
from pretrain.config.loader import load_experiment
from pretrain.data.batch import to_model_input
from pretrain.data.stream import EvalStream
from pretrain.errors import ConfigError, DataError

UNIT: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
EACH = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 images of one colour each: red is 40 × class + 1, green the number of the image."""
    root = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(("cat", "dog")):
        for number in range(EACH):
            for split in ("train", "val"):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (41 + number, 50), (40 * index + 1, number, split == "val")).save(path)
    return root


def found(made: EvaluationSet) -> list[tuple[int, int, int]]:
    """(class in the pixels, number in the pixels, label) of every image."""
    rows = []
    for images, labels in made:
        colours = (images.mean(dim=(2, 3)) * 255).round().long()
        assert (colours[:, 2] == 1).all(), "of the split val"
        rows += [(red // 40, green, label) for (red, green, _), label in zip(colours.tolist(), labels.tolist())]  # noqa: B905
    return rows


EVERY = [(index, number, index) for index in (0, 1) for number in range(EACH)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_once_and_again(photos: Path, num_workers: int) -> None:
    made = EvaluationSet(str(photos), 4, img_size=16, num_workers=num_workers, **UNIT)
    assert (len(made), made.num_samples, made.class_names) == (4, 14, ("cat", "dog"))
    assert found(made) == EVERY
    assert found(made) == EVERY


@pytest.mark.parametrize("world", [2, 3, 16])
def test_ranks_share_the_images(photos: Path, world: int) -> None:
    ranks = [
        EvaluationSet(str(photos), 3, img_size=16, num_workers=0, rank=r, world_size=world, **UNIT)
        for r in range(world)
    ]
    assert len({len(one) for one in ranks}) == 1
    assert [found(one) for one in ranks] == [EVERY[rank::world] for rank in range(world)]


def test_an_unreadable_image_is_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            for split in ("train", "val"):
                Image.new("RGB", (20, 20), "red").save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "val" / "b" / "2.png").write_bytes(b"not an image")
    made = EvaluationSet(str(tmp_path), 8, img_size=16, num_workers=0, max_bad_rate=0.2)
    assert torch.cat([labels for _, labels in made]).tolist() == [0] * 4 + [1] * 3
    assert made.faults.num_bad == 1 and "decode × 1" in made.faults.summary()
    with pytest.raises(DataError, match=r"b/2\.png"):
        list(EvaluationSet(str(tmp_path), 8, img_size=16, num_workers=0, max_bad_rate=0.0))


def test_a_packed_set_gives_the_batches_of_an_evaluation(tmp_path: Path) -> None:
    assert main(["pack", "digits", "--classes", "0-4", "--holdout", "0.2", "--out", str(tmp_path)]) == 0
    settings = [f"data.shards={tmp_path}/train", f"evaluation.sets.val.shards={tmp_path}/val"]
    config = load_experiment("recipe:pretrain/demo_digits", overrides=settings).experiment
    transform = config.data.eval_transform.model_dump(exclude_unset=True)
    made = EvaluationSet(str(tmp_path / "val"), 16, img_size=8, eval_transform=transform, num_workers=0)
    engine = list(EvalStream(config, f"{tmp_path}/val", 0, 1, 16))
    assert len(engine) == len(made) > 3
    for batch, (images, labels) in zip(engine, made, strict=True):
        assert torch.equal(batch.labels[batch.valid, 0], labels)
        assert torch.equal(to_model_input(batch.images, (0.5,) * 3, (0.5,) * 3)[batch.valid], images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "0 ≤ rank < world_size"),
        ({"eval_transform": {"resize": "round"}}, "eval_transform.*resize"),
        ({"eval_transform": {"flip": 1}}, "eval_transform.flip: unknown key"),
    ],
)
def test_a_wrong_setting_is_an_error(photos: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationSet(str(photos), 4, **options)
    with pytest.raises(DataError, match="has no split 'dev'; it has train, val"):
        EvaluationSet(str(photos), 4, split="dev")
