"""The stream for other training loops: every image, the right label, the same batches after a resume and on ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.__main__ import main
from pipelines.api import ImageStream
from pretrain.config.loader import load_experiment
from pretrain.data.batch import to_model_input
from pretrain.data.stream import TrainStream
from pretrain.errors import ConfigError, DataError

CLASSES, EACH = ("cat", "dog", "eel"), 9
PLAIN = {"crop": "none", "hflip": 0}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 images of one colour each: red is 40 × class + 1, green the number of the image."""
    root = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(CLASSES):
        for number in range(EACH):
            path = root / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + number, 50), (40 * index + 1, number, 0)).save(path)
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 50), (40 * index + 1, 200, 0)).save(root / "val" / name / "0.png")
    return root


def stream(photos: Path, batch_size: int = 4, **options: object) -> ImageStream:
    return ImageStream(str(photos), batch_size, **{"img_size": 16, "num_workers": 0, "seed": 3, **UNIT, **options})  # pyright: ignore[reportArgumentType]


def drawn(made: ImageStream) -> list[tuple[int, int, int]]:
    """(class in the pixels, number in the pixels, label) for each image of an epoch."""
    found = []
    for images, labels in made:
        colours = (images.mean(dim=(2, 3)) * 255).round().long()
        found += [(red // 40, green, label) for (red, green, _), label in zip(colours.tolist(), labels.tolist())]  # noqa: B905
    return found


def test_epochs_of_a_folder_draw_every_image_with_its_label(photos: Path) -> None:
    made = stream(photos)
    assert made.class_names == CLASSES and made.num_samples == 27 and len(made) == 6
    first, second = drawn(made), drawn(made)
    assert all(label == seen for seen, _, label in first + second)
    assert len(set(first)) == 24, "no image twice in an epoch"
    assert len(set(first + second)) == 27 and first != second
    assert made.epoch == 2 and made.faults.num_bad == 0
    assert {green for _, green, _ in drawn(stream(photos, 2, split="val"))} == {200}
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        stream(photos, split="test")


def test_a_resume_is_exact_and_independent_of_the_workers(photos: Path) -> None:
    augmented: dict[str, Any] = {
        "train_transform": {"crop": "inception", "randaugment": {"num_layers": 2, "magnitude": 9}}
    }
    whole = stream(photos, **augmented)
    straight = [*whole, *whole]
    stopped = stream(photos, num_workers=1, **augmented)
    for number, _ in enumerate(stopped):
        if number == 3:
            break
    resumed = stream(photos, **augmented)
    resumed.load_state_dict(stopped.state_dict())
    rest = [*resumed, *resumed]
    assert len(rest) == len(straight) - 4
    for (images, labels), (expected, expected_labels) in zip(rest, straight[4:], strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


def test_ranks_share_the_batch_of_one(photos: Path) -> None:
    alone = stream(photos, 8)
    parts = [stream(photos, 4, rank=rank, world_size=2) for rank in range(2)]
    for (images, _), *ranks in zip(alone, *parts, strict=True):
        together = torch.cat([part for part, _ in ranks])
        assert sorted(row.sum().item() for row in together) == sorted(row.sum().item() for row in images)
    parts[0].load_state_dict(alone.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 4}, "seed .saved 3, now 4"), ({"batch_size": 2}, "batch_size × world_size .saved 4, now 2")],
)
def test_the_state_of_another_stream_is_refused(photos: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(photos, **options).load_state_dict(stream(photos).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3}, "global_batch_size"),
        ({"rank": 2, "world_size": 2}, "0 ≤ rank < world_size"),
        ({"train_transform": {"crop": "round"}}, "train_transform.*crop"),
        ({"train_transform": {"flip": 1}}, "train_transform.flip: unknown key"),
    ],
)
def test_a_wrong_setting_is_an_error(photos: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(photos, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="does not exist"):
        ImageStream("nowhere", 2)


def test_an_unreadable_image_is_replaced_and_counted(photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (20, 20), "red").save(tmp_path / name / f"{number}.png")
    (tmp_path / "b" / "2.png").write_bytes(b"not an image")
    made = stream(tmp_path, 2, max_bad_rate=0.2)
    for images, _ in made:
        assert (images[:, 0] == 1).all()
    assert made.faults.num_bad == 1 and "decode × 1" in made.faults.summary()
    with pytest.raises(DataError, match=r"b/2\.png"):
        list(stream(tmp_path, 2, max_bad_rate=0.0))


def test_a_packed_set_gives_the_batches_of_a_training(tmp_path: Path) -> None:
    assert main(["pack", "digits", "--classes", "0-4", "--holdout", "0.2", "--out", str(tmp_path)]) == 0
    settings = [f"data.shards={tmp_path}/train", f"evaluation.sets.val.shards={tmp_path}/val", "global_batch_size=16"]
    config = load_experiment("recipe:pretrain/demo_digits", overrides=settings).experiment
    engine = TrainStream(config, 0, 1, 16)
    transform = config.data.train_transform.model_dump(exclude_unset=True) | {"crop": "inception"}
    made = ImageStream(str(tmp_path / "train"), 16, img_size=8, train_transform=transform, num_workers=0)
    assert made.class_names == tuple("01234") and len(made) == 714 // 16
    for batch, (images, labels), _ in zip(engine.iterate(0, 3), made, range(3), strict=False):
        assert np.array_equal(batch.labels[:, 0], labels)
        assert torch.equal(to_model_input(batch.images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), images)
