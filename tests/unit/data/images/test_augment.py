from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from pretrain.config.schema.transforms import AnyTrainTransform, EvalTransformConfig, InceptionConfig
from pretrain.data.images.augment import EvalTransform, TrainTransform
from pretrain.data.images.crops import inception_box

EPOCHS = np.zeros(2000, dtype=np.int64)
IDS = np.arange(2000)


def encode(pixels: np.ndarray, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    """Red says the column, green the row."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), x * 0], axis=-1).astype(np.uint8)


def transform(size=(32, 32), seed=0, **config) -> TrainTransform:
    height, width = size
    return TrainTransform(TypeAdapter(AnyTrainTransform).validate_python(config), height, width, seed)


def boxes(height: int, width: int, count: int = 2000, **config) -> np.ndarray:
    made = transform(**config)
    assert isinstance(made.config, InceptionConfig)
    numbers = made.numbers(EPOCHS[:count], IDS[:count])
    return np.array([inception_box(height, width, made.config, row[:40]) for row in numbers])


@pytest.mark.parametrize("size", [(300, 400), (7, 9), (1, 1), (1000, 10), (10, 1000)])
def test_boxes_lie_inside_the_image(size):
    height, width = size
    top, left, box_height, box_width = boxes(height, width, 300).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (box_height >= 1).all()
    assert (box_width >= 1).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()


def test_boxes_have_the_areas_and_ratios_that_are_asked_for():
    _, _, height, width = boxes(1000, 1000, min_area=0.05).T
    share, ratio = height * width / 1e6, width / height
    assert share.min() > 0.0499
    assert np.log(ratio).min() > math.log(0.75) - 0.01
    assert np.log(ratio).max() < math.log(4 / 3) + 0.01
    # Large boxes with an extreme ratio do not fit and are drawn again: compare where every box fits.
    small = share < 0.7
    assert np.allclose(np.quantile(share[small], [0.25, 0.5, 0.75]), [0.2125, 0.375, 0.5375], atol=0.03)
    assert abs(np.log(ratio[small]).mean()) < 0.02
    assert abs(np.log(ratio[small]).std() - math.log(4 / 3) / math.sqrt(3)) < 0.01


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (19, 23), (300, 1000)])
@pytest.mark.parametrize("min_area", [0.05, 0.08])
def test_boxes_follow_torchvisions_law(size, min_area):
    """Areas, ratios and places of RandomResizedCrop's own draws."""
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, *size)
    drawn = [RandomResizedCrop.get_params(image, [min_area, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    theirs, ours = np.array(drawn, dtype=float).T, boxes(*size, min_area=min_area).astype(float).T
    for law in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top / np.maximum(1, size[0] - height),
        lambda top, left, height, width: left / np.maximum(1, size[1] - width),
    ):
        compared: Any = ks_2samp(law(*ours), law(*theirs))
        assert compared.pvalue > 1e-4


def test_boxes_lie_anywhere():
    top, left, height, width = boxes(1000, 1000, min_area=0.05).T
    assert abs((top / np.maximum(1, 1000 - height)).mean() - 0.5) < 0.03
    assert abs((left / np.maximum(1, 1000 - width)).mean() - 0.5) < 0.03


def test_a_narrow_image_gets_its_central_box():
    assert (boxes(1000, 10, 50) == [(1000 - 13) // 2, 0, 13, 10]).all()


def test_numbers_are_functions_of_seed_epoch_and_sample():
    base = transform(seed=1).numbers(np.array([0, 0, 1]), np.array([5, 6, 5]))
    assert len(np.unique(base[:, 0])) == 3
    assert np.array_equal(transform(seed=1).numbers(np.array([1, 0]), np.array([5, 5])), base[[2, 0]])
    assert not np.array_equal(transform(seed=2).numbers(np.array([0]), np.array([5])), base[:1])


def test_a_crop_shows_what_its_box_holds():
    """The corners of a crop of a gradient say which part of the image it is."""
    made = transform(size=(64, 64), hflip=0.0)
    assert isinstance(made.config, InceptionConfig)
    numbers = made.numbers(EPOCHS[:40], IDS[:40])
    for image_format, options, tolerance in (("PNG", {}, 3), ("JPEG", {"quality": 95}, 6)):
        data = encode(gradient(480, 640), image_format, **options)
        for row in numbers:
            top, left, height, width = inception_box(480, 640, made.config, row[:40])
            pixels = made(data, row).astype(float)
            columns = (left + (np.arange(64) + 0.5) / 64 * width - 0.5) * 255 / 639
            rows = (top + (np.arange(64) + 0.5) / 64 * height - 0.5) * 255 / 479
            assert np.abs(pixels[32, 2:-2, 0] - columns[2:-2]).max() < tolerance
            assert np.abs(pixels[2:-2, 32, 1] - rows[2:-2]).max() < tolerance


@pytest.mark.parametrize("filter", ["bilinear", "bilinear_aa", "bicubic_aa", "area"])
def test_a_large_jpeg_may_be_decoded_small_where_the_filter_is_antialiased(filter):
    y, x = np.mgrid[0:1024, 0:1024]
    waves = np.repeat((127 + 80 * np.sin(x / 40) * np.cos(y / 55))[..., None], 3, axis=2).astype(np.uint8)
    data = encode(waves, "JPEG", quality=95)
    made = transform(crop="resize", resize_filter=filter, hflip=0.0)
    quick = made(data, made.numbers(EPOCHS[:1], IDS[:1])[0]).astype(int)
    full = EvalTransform(EvalTransformConfig(resize="squash", resize_filter=filter), 32, 32)(data).astype(int)
    assert np.abs(quick - full).max() <= (0 if filter == "bilinear" else 12)
    assert np.abs(quick - full).mean() < 2


def test_flips_happen_as_often_as_asked():
    data = encode(gradient(8, 8))
    for probability in (0.0, 0.25):
        made = transform(size=(8, 8), crop="resize", hflip=probability)
        numbers = made.numbers(EPOCHS[:400], IDS[:400])
        flipped = [int(made(data, row)[0, 0, 0]) == 255 for row in numbers]
        assert abs(np.mean(flipped) - probability) < 0.06


ODD_SIZES = [(480, 640), (375, 500), (500, 333), (333, 301), (303, 256), (225, 1000), (101, 97), (8, 8), (13, 7)]


def photo(height: int, width: int) -> np.ndarray:
    """Coarse noise, magnified: a shift by a pixel is many levels."""
    noise = np.random.default_rng(height * 1000 + width).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3))
    return np.array(Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("side", [224, 97, 32])
def test_evaluation_images_are_those_of_torchvision(side: int, fraction: float, tmp_path: Path) -> None:
    """From an image file, as DeiT evaluates: Resize(int(size / share)) and CenterCrop(size), bicubic."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    peer: Any = Compose([Resize(int(side / fraction), InterpolationMode.BICUBIC), CenterCrop(side)])
    made = EvalTransform(EvalTransformConfig(crop_fraction=fraction, resize_filter="bicubic_aa"), side, side)
    for size in ODD_SIZES:
        path = tmp_path / "photo.png"
        Image.fromarray(photo(*size)).save(path)
        with Image.open(path) as image:
            expected = np.asarray(peer(image.convert("RGB"))).astype(int)
        difference = np.abs(made(path.read_bytes()).astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.3, (size, difference.max())


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("target", "share"), [((224, 224), 0.9), ((96, 64), 0.875), ((64, 97), 0.93), ((32, 32), 0.95)]
)
def test_evaluation_images_are_those_of_timm(target: tuple[int, int], share: float, mode: str, tmp_path: Path) -> None:
    """From an image file, squares and others; timm's own arguments."""
    from timm.data.transforms_factory import create_transform

    names = {"interpolation": "bilinear", "crop_mode": mode, "crop_pct": share, "mean": (0, 0, 0), "std": (1, 1, 1)}
    peer: Any = create_transform((3, *target), is_training=False, **names)
    resize: Any = "short_side" if mode == "center" else "squash_crop"
    made = EvalTransform(EvalTransformConfig(resize=resize, crop_fraction=share), *target)
    for size in ODD_SIZES:
        path = tmp_path / "photo.png"
        Image.fromarray(photo(*size)).save(path)
        with Image.open(path) as image:
            expected = np.round(peer(image.convert("RGB")).numpy().transpose(1, 2, 0) * 255)
        difference = np.abs(made(path.read_bytes()).astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.3, (size, difference.max())


@pytest.mark.parametrize("resize", ["short_side", "resmall", "squash", "squash_crop"])
@pytest.mark.parametrize("size", [(120, 90), (90, 200), (40, 40), (61, 47), (3000, 2)])
def test_the_part_of_an_image_that_is_seen(resize: str, size: tuple[int, int]) -> None:
    """Of an image whose pixels are their own places: the mean of the result is that of the part."""
    config = EvalTransformConfig(resize=resize, **({} if resize == "squash" else {"crop_fraction": 0.8}))  # type: ignore[arg-type]
    made = EvalTransform(config, 32, 48)
    rows, columns = (np.linspace(0, 255, side) for side in size)
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = rows[:, None].round(), columns[None, :].round()
    top, left, height, width = made.seen(*size)
    part = image[top : top + height, left : left + width]
    assert part.shape[:2] == (height, width) and height >= 1 and width >= 1
    pixel = np.array([255 / side for side in size])  # a box ends at a pixel's edge
    difference = np.abs(made.of_pixels(image)[..., :2].mean((0, 1)) - part[..., :2].mean((0, 1)))
    assert (difference <= 1.5 + 0.75 * pixel).all(), difference
