"""Masks: cut and flipped with their images to the pixel, from the packer to the batch; what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.__main__ import main
from pretrain.config.schema.data import EvalTransformConfig, TrainTransformConfig
from pretrain.data.augment import EvalTransform, TrainTransform
from pretrain.data.card import Card
from pretrain.data.faults import BadSample
from pretrain.data.index import ShardTable
from pretrain.data.masks import read_mask
from pretrain.data.reader import Sample, ShardReader
from pretrain.data.stream import EvalStream, TrainStream
from pretrain.errors import DataError
from tests.unit.data.sets import experiment

HEIGHT, WIDTH, SIDE = 37, 53, 24


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def twins(seed: int = 0) -> Sample:
    """An image whose grey values are the classes of its mask."""
    classes = np.random.default_rng(seed).integers(0, 250, (HEIGHT, WIDTH), dtype=np.uint8)
    return Sample(seed, png(np.repeat(classes[:, :, None], 3, axis=2)), (), mask=png(classes))


CROPS = {
    "inception": {"crop": "inception", "min_area": 0.2},
    "simple": {"crop": "simple"},
    "resmall": {"crop": "resmall", "short_side": 30},
    "resize": {"crop": "resize"},
}


@pytest.mark.parametrize("crop", CROPS)
def test_image_and_mask_are_cut_alike_to_the_pixel(crop: str) -> None:
    """With the nearest pixel for both, each pixel of the image still is the class of the mask."""
    config = TrainTransformConfig(**CROPS[crop], hflip=0.5).model_copy(update={"resize_filter": "nearest"})
    transform = TrainTransform(config, SIDE, SIDE, seed=3)
    ids = np.arange(12)
    views = []
    for row, numbers in enumerate(transform.numbers(np.zeros(12, np.int64), ids)):
        view = transform.pair(twins(row), numbers)
        assert view.mask is not None and view.mask.shape == (SIDE, SIDE)
        np.testing.assert_array_equal(view.pixels, np.repeat(view.mask[:, :, None], 3, axis=2))
        views.append(view.mask)
    assert len({view.tobytes() for view in views}) == 12


def test_colours_change_the_image_alone() -> None:
    views = []
    for colours in ({}, {"three_augment": True, "color_jitter": 0.4}):
        transform = TrainTransform(TrainTransformConfig(hflip=0.5, **colours), SIDE, SIDE, seed=3)
        views.append(transform.pair(twins(), transform.numbers(np.zeros(1, np.int64), np.arange(1))[0]))
    one, other = views
    assert one.mask is not None and other.mask is not None
    np.testing.assert_array_equal(one.mask, other.mask)
    assert (one.pixels != other.pixels).any()


def test_evaluation_squashes_both() -> None:
    view = EvalTransform(EvalTransformConfig(resize="squash"), SIDE, SIDE).pair(twins())
    with Image.open(io.BytesIO(twins().mask or b"")) as mask:
        wanted = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    assert view.mask is not None
    np.testing.assert_array_equal(view.mask, wanted)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "mode RGB; a mask has one channel"),
        (np.full((4, 4), 300, np.uint16), "a pixel is 300"),
        (np.zeros((4, 5), np.uint8), "5×4 pixels, but its image has 53×37"),
    ],
)
def test_masks_that_cannot_be_used(pixels: np.ndarray, message: str) -> None:
    sample = Sample(0, twins().data, (), mask=png(pixels))
    with pytest.raises(BadSample, match=message):
        EvalTransform(EvalTransformConfig(resize="squash"), SIDE, SIDE).pair(sample)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and palette masks of classes 0 … 3, where 0 will stand for none; photo k is the grey of its classes."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(12):
        split = "validation" if number >= 9 else "training"
        classes = np.random.default_rng(number).integers(0, 4, (20, 30), dtype=np.uint8)
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes * 60).convert("RGB").save(root / "images" / split / f"{number}.png")
        mask = Image.fromarray(classes)
        mask.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        mask.save(root / "masks" / split / f"{number}.png")
    (root / "names.txt").write_text("sky\nsea\nland\n")
    return root


@pytest.fixture(scope="module")
def packed(folders: Path) -> Path:
    out = folders / "packed"
    paths = [str(folders / name) for name in ("images", "masks")]
    options = ["--class-names", str(folders / "names.txt"), "--reduce-zero-label", "--shard-samples", "4"]
    assert main(["pack", "masks", *paths, "--out", str(out), *options]) == 0
    return out


def segmentation(folder: Path, count: int, **changes: object):
    settings = {"objective__name": "segmentation", "model__head": "dense", "data__num_classes": 3, **changes}
    return experiment(folder, count, **settings)


def test_packed_masks_are_those_of_their_images(packed: Path) -> None:
    table, card = ShardTable.load(packed / "train"), Card.load(packed / "train")
    assert (table.target, table.num_classes, card.labels, card.num_samples) == ("mask", 3, "mask", 9)
    assert card.class_counts == [9, 9, 9] and Card.load(packed / "val").num_samples == 3
    reader = ShardReader(table)
    for index in range(9):
        sample = reader.read(index)
        with Image.open(io.BytesIO(sample.data)) as image:
            classes = np.asarray(image)[:, :, 0] // 60
        np.testing.assert_array_equal(read_mask(sample.mask or b""), np.where(classes == 0, 255, classes - 1))


def test_batches_have_the_masks_of_their_images(packed: Path) -> None:
    stream = TrainStream(
        segmentation(packed / "train", 9, global_batch_size=4, data__lanes=1, cluster__micro_batch_size=4), 0, 1, 4
    )
    reader = ShardReader(ShardTable.load(packed / "train"))
    whole = TrainTransform(stream._config.data.augmentation, 8, 8, 3)
    for batch in stream.iterate(0, 2):
        assert batch.targets is not None and batch.targets.shape == (4, 8, 8) and batch.labels.shape == (4, 0)
        for row, sample_id in enumerate(batch.sample_ids.tolist()):
            view = whole.pair(reader.read(sample_id), np.ones(64))
            assert view.mask is not None
            np.testing.assert_array_equal(batch.targets[row].numpy(), view.mask)
    for batch in EvalStream(segmentation(packed / "train", 9), str(packed / "val"), 1, 2, 4, kind="segmentation"):
        assert batch.targets is not None
        assert (batch.targets[~batch.valid] == 255).all() and batch.valid.sum() == 1


def test_verify_and_packing_again_keep_them(packed: Path, folders: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(packed / "train", copy)
    assert main(["verify", str(copy)]) == 0
    before = ShardTable.load(copy)
    for file in [*copy.glob("*.safetensors"), copy / "index.json", copy / "card.json"]:
        file.unlink()
    assert main(["verify", str(copy)]) == 0
    assert [row.num_samples for row in ShardTable.load(copy).rows] == [row.num_samples for row in before.rows]
    assert (ShardTable.load(copy).target, ShardTable.load(copy).num_classes) == ("mask", 3)
    assert main(["pack", "webdataset", str(packed / "train"), "--out", str(tmp_path / "again")]) == 0
    old, new = (
        ShardReader(ShardTable.load(packed / "train")),
        ShardReader(ShardTable.load(tmp_path / "again" / "train")),
    )
    masks = [{sample.data: sample.mask for sample in map(reader.read, range(9))} for reader in (old, new)]
    assert masks[0] == masks[1]


def test_a_manifest_of_masks(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": f"images/training/{k}.png", "mask": f"masks/training/{k}.png"} for k in range(9)]
    (folders / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ["--class-names", str(folders / "names.txt")]
    assert main(["pack", "manifest", str(folders / "m.jsonl"), "--out", str(tmp_path / "a")]) == 2
    assert "masks need --class-names FILE" in capsys.readouterr().err
    assert main(["pack", "manifest", str(folders / "m.jsonl"), "--out", str(tmp_path / "b"), *names]) == 2
    assert "a pixel is 3, but there are 3 classes" in capsys.readouterr().err, "0 is a class here"
    options = [*names, "--reduce-zero-label", "--holdout", "0.4"]
    assert main(["pack", "manifest", str(folders / "m.jsonl"), "--out", str(tmp_path / "c"), *options]) == 0
    assert ShardTable.load(tmp_path / "c" / "train").target == "mask"


def test_an_image_without_a_mask_is_named(folders: Path, tmp_path: Path) -> None:
    from pipelines.sources.image_pairs import ImagePairSource

    with pytest.raises(DataError, match=r"images/training/0.png has no mask: .*/0.png does not exist"):
        list(ImagePairSource(folders / "images", tmp_path, [("a", "a")]).items())
