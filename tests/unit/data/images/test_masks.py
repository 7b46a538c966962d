"""Masks: cut and flipped with their images to the pixel, from the packer to the batch; what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import TypeAdapter

from pipelines.__main__ import main
from pretrain.config.schema.transforms import AnyTrainTransform, EvalTransformConfig, InceptionConfig
from pretrain.data.images.augment import EvalTransform, TrainTransform, View
from pretrain.data.images.masks import read_mask
from pretrain.data.images.policies import registry
from pretrain.data.storage.card import Card
from pretrain.data.storage.index import ShardTable
from pretrain.data.stream import EvalRequest, EvalStream, TrainStream
from pretrain.data.workers.reader import Sample, ShardReader
from pretrain.errors import BadSample, DataError
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


def coloured(seed: int) -> Sample:
    """The same with an image of other colours, on which a turned hue shows."""
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return dataclasses.replace(twins(seed), data=png(pixels))


CROPS = {
    "inception": {"crop": "inception", "min_area": 0.2},
    "inception_tf": {"crop": "inception_tf", "min_area": 0.2},
    "simple": {"crop": "simple"},
    "resmall": {"crop": "resmall", "short_side": 30},
    "resize": {"crop": "resize"},
    "native": {"crop": "native", "max_tokens": 16, "min_area": 0.2},
}


@pytest.mark.parametrize("crop", CROPS)
def test_image_and_mask_are_cut_alike_to_the_pixel(crop: str) -> None:
    """With the nearest pixel for both, each pixel of the image still is the class of the mask."""
    config = TypeAdapter(AnyTrainTransform).validate_python({**CROPS[crop], "hflip": 0.5}).of_masks()
    transform = TrainTransform(config, SIDE, SIDE, seed=3)
    ids = np.arange(12)
    views = []
    for row, numbers in enumerate(transform.numbers(np.zeros(12, np.int64), ids)):
        view = transform.pair(twins(row), numbers)
        assert view.mask is not None and view.mask.shape == (SIDE, SIDE)
        np.testing.assert_array_equal(view.pixels, np.repeat(view.mask[:, :, None], 3, axis=2))
        views.append(view.mask)
    assert len({view.tobytes() for view in views}) == 12


# a value that switches each policy on
POLICIES: dict[str, Any] = {
    "randaugment": {"num_layers": 2, "magnitude": 10},
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "three_augment": True,
    "color_jitter": 0.4,
    "color_jitter_hue": 0.4,
    "random_erasing": {"prob": 1.0},
}


def test_every_key_of_the_transform_is_a_policy_or_cuts_image_and_mask_alike() -> None:
    cutting = {"crop", "short_side", "min_area", "ratio", "hflip", "resize_filter"}
    assert set(InceptionConfig.policies()) == set(POLICIES) == set(InceptionConfig.model_fields) - cutting
    assert registry.POLICIES.keys() <= POLICIES.keys()


@pytest.mark.parametrize("key", POLICIES)
def test_a_policy_that_moves_pixels_is_refused_beside_masks_and_any_other_leaves_them(key: str) -> None:
    config = TypeAdapter(AnyTrainTransform).validate_python({"hflip": 0.5, key: POLICIES[key]})
    if InceptionConfig.policies()[key].moves_pixels:
        assert config.moving_pixels == [key]
        settings = {
            "objective__name": "segmentation",
            "model__head": "dense",
            "data__eval_transform": {"resize": "squash"},
        }
        with pytest.raises(ValueError, match=f"data.train_transform.{key} .or data.augreg. changes where things are"):
            experiment("data", 10, **settings, data__train_transform={key: POLICIES[key]})
        return
    views = []
    for chosen in (InceptionConfig(hflip=0.5), config):
        transform = TrainTransform(chosen, SIDE, SIDE, seed=3)
        numbers = transform.numbers(np.zeros(4, np.int64), np.arange(4))
        views.append([transform.pair(coloured(row), numbers[row]) for row in range(4)])
    for one, other in zip(*views, strict=True):
        assert one.mask is not None and other.mask is not None
        np.testing.assert_array_equal(one.mask, other.mask)
        assert (one.pixels != other.pixels).any(), "the policy is on"


def test_evaluation_squashes_both() -> None:
    view = EvalTransform(EvalTransformConfig(resize="squash"), SIDE, SIDE).pair(twins())
    with Image.open(io.BytesIO(twins().mask or b"")) as mask:
        wanted = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    assert view.mask is not None
    np.testing.assert_array_equal(view.mask, wanted)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "colours, not numbers"),
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
    for batch in EvalStream(
        segmentation(packed / "train", 9), str(packed / "val"), 1, 2, 4, EvalRequest(kind="segmentation")
    ):
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
    assert "a pixel is 3, but classes are 0 to 2" in capsys.readouterr().err, "0 is a class here"
    options = [*names, "--reduce-zero-label", "--holdout", "0.4"]
    assert main(["pack", "manifest", str(folders / "m.jsonl"), "--out", str(tmp_path / "c"), *options]) == 0
    assert ShardTable.load(tmp_path / "c" / "train").target == "mask"


def test_an_image_without_a_mask_is_named(folders: Path, tmp_path: Path) -> None:
    from pipelines.sources.image_pairs import ImagePairSource
    from pipelines.sources.options import SourceOptions

    (tmp_path / "names.txt").write_text("a\n")
    how = SourceOptions(class_names=tmp_path / "names.txt")
    with pytest.raises(DataError, match=r"images/training/0.png has no mask: .*/0.png does not exist"):
        list(ImagePairSource(folders / "images", tmp_path, how).items())


def test_a_number_beyond_the_classes_is_a_bad_sample() -> None:
    sample = dataclasses.replace(twins(), num_classes=10)
    for transform in (EvalTransform(EvalTransformConfig(), 8, 8).pair, train_pair):
        with pytest.raises(BadSample, match="a pixel is 249, but the set has 10 classes"):
            transform(sample)
        assert transform(dataclasses.replace(twins(), num_classes=250)).mask is not None


def train_pair(sample: Sample) -> View:
    transform = TrainTransform(InceptionConfig(), 8, 8, seed=1)
    return transform.pair(sample, transform.numbers(np.zeros(1, np.int64), np.arange(1))[0])


def bits_of(depth: int, numbers: np.ndarray) -> bytes:
    """A grey PNG of 1, 2, 4, 8 or 16 bits, written by hand, as optimisers of PNG files store it."""
    height, width = numbers.shape
    rows = b""
    for row in numbers.tolist():
        bits = "".join(f"{number:0{depth}b}" for number in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = (struct.pack(">I", len(body)) + kind + body for kind, body in [*parts, (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in chunks)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def with_palette(numbers: np.ndarray, bits: int, image_format: str = "PNG") -> bytes:
    image = Image.fromarray(numbers)
    image.putpalette([value for index in range(2**bits) for value in (7 * index % 256, 255 - index, 9)])
    return saved(image, image_format, **({"bits": bits} if image_format == "PNG" else {}))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_stored_numbers_count_not_what_a_viewer_shows(depth: int) -> None:
    numbers = np.random.default_rng(depth).integers(0, 2**depth, (7, 13)).astype(np.uint8)
    three = np.repeat(numbers[:, :, None], 3, axis=2)
    files = {
        "grey": bits_of(depth, numbers),
        "16 bits": bits_of(16, numbers),
        "palette": with_palette(numbers, depth),
        "TIFF": saved(Image.fromarray(numbers), "TIFF"),
        "TIFF, compressed": saved(Image.fromarray(numbers.astype(np.uint16)), "TIFF", compression="tiff_lzw"),
        "RGB": saved(Image.fromarray(three), "PNG"),
        "RGBA": saved(Image.fromarray(np.dstack([three, np.full((7, 13), 255, np.uint8)])), "PNG"),
        "LA": saved(Image.fromarray(np.dstack([numbers, np.full((7, 13), 255, np.uint8)])), "PNG"),
    }
    if depth == 1:
        files["Pillow's bits"] = saved(Image.fromarray(numbers.astype(bool)), "PNG")
        files["bits in a TIFF"] = saved(Image.fromarray(numbers.astype(bool)), "TIFF")
    for name, data in files.items():
        np.testing.assert_array_equal(read_mask(data), numbers, err_msg=name)


def test_what_is_not_a_mask() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    alpha = np.dstack([grey, grey])
    colours = np.random.default_rng(0).integers(0, 9, (4, 5, 3)).astype(np.uint8)
    for data, message in (
        (saved(Image.fromarray(grey), "JPEG"), "formats that are read: PNG, TIFF, BMP, GIF"),
        (saved(Image.fromarray(grey), "WEBP", lossless=True), "formats that are read"),
        (saved(Image.fromarray(alpha), "PNG"), "partly transparent"),
        (saved(Image.fromarray(colours), "PNG"), "colours, not numbers"),
        (saved(Image.fromarray(grey.astype(np.float32)), "TIFF"), "mode F"),
        (saved(Image.fromarray(grey.astype(np.int32) - 3), "TIFF"), "a pixel is -3"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it looks like PostScript"),
    ):
        with pytest.raises(BadSample, match=message) as caught:
            read_mask(data)
        assert caught.value.kind == "mask"


def test_a_mask_with_an_orientation_of_its_own_is_upright() -> None:
    grey, exif = np.arange(20, dtype=np.uint8).reshape(4, 5), Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(grey), "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(read_mask(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_verify_says_which_classes_masks_lack(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As sets are that an earlier version packed from 1-bit masks: the figure counts as none."""
    reader = ShardReader(ShardTable.load(packed / "train"))
    cases = {
        "figure": (lambda mask: np.where(mask == 0, 0, 255), 0, "warning: 2 of 3 classes occur in no mask: 1, 2"),
        "nothing": (lambda mask: np.full_like(mask, 255), 1, "no pixel of the masks has a class"),
        "beyond": (lambda mask: np.where(mask == 0, 0, 7), 2, "a label is 7, but there are 3 classes"),
    }
    for name, (change, code, said) in cases.items():
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "0.tar", "w") as tar:
            for index in range(9):
                sample = reader.read(index)
                mask = png(change(read_mask(sample.mask or b"")).astype(np.uint8))
                for extension, data in (("png", sample.data), ("seg.png", mask)):
                    info = tarfile.TarInfo(f"{index:03d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        assert main(["verify", str(tmp_path / name), "--num-classes", "3"]) == code
        captured = capsys.readouterr()
        assert said in captured.out + captured.err


@pytest.mark.parametrize(("counts", "shown"), [([9, 0, 0], 1), ([0, 0, 0], 0)])
def test_nothing_is_learnt_from_masks_of_one_class(packed: Path, tmp_path: Path, counts: list[int], shown: int) -> None:
    """As an earlier version packed 1-bit masks: refused before the first step, in training and in evaluation."""
    spoilt = tmp_path / "set"
    shutil.copytree(packed / "train", spoilt)
    card = Card.load(spoilt).model_copy(update={"class_counts": counts})
    (spoilt / "card.json").write_bytes(card.to_json())
    for start in (
        lambda: TrainStream(segmentation(spoilt, 9, global_batch_size=4, data__lanes=1), 0, 1, 4),
        lambda: EvalStream(segmentation(packed / "train", 9), str(spoilt), 0, 1, 4, EvalRequest(kind="segmentation")),
    ):
        with pytest.raises(DataError, match=f"its masks show {shown} of 3 classes.*pack the set again"):
            start()
