"""The crops beside the inception crop: which part of the image they show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from pretrain.config.schema.transforms import AnyTrainTransform, InceptionConfig, ResmallConfig, SimpleConfig
from pretrain.data.images.augment import TrainTransform
from pretrain.data.images.crops import NUMBERS_PER_CROP, REFLECTED, Frame, resmall_crop, simple_crop
from pretrain.data.images.decode import open_image


def png(height: int, width: int) -> tuple[bytes, Any]:
    noise = np.random.default_rng(height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue(), image


def numbers(top: float, left: float) -> np.ndarray:
    row = np.zeros(NUMBERS_PER_CROP)
    row[:2] = top, left
    return row


@pytest.mark.parametrize("size", [(60, 81), (81, 60), (32, 32), (33, 200), (20, 25)])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.3), (0.999, 0.999)])
def test_the_simple_crop_is_torchvisions_resize_pad_and_crop(size: tuple[int, int], place: tuple[float, float]) -> None:
    data, image = png(*size)
    config = SimpleConfig(resize_filter="bicubic_aa")
    made = simple_crop(open_image(data), config, Frame(32, 32, config.resize_filter), numbers(*place)).astype(int)
    resized: Any = tv.resize(image, [32], InterpolationMode.BICUBIC)
    padded: Any = tv.pad(resized, [REFLECTED], padding_mode="reflect")
    top, left = (int(share * (side - 32 + 1)) for share, side in zip(place, padded.size[::-1], strict=True))
    expected = np.asarray(tv.crop(padded, top, left, 32, 32)).astype(int)
    assert np.abs(made - expected).max() <= 2


@pytest.mark.parametrize("size", [(60, 81), (81, 60), (40, 40), (20, 200)])
def test_resmall_resizes_the_short_side_and_crops_anywhere(size: tuple[int, int]) -> None:
    data, image = png(*size)
    config = ResmallConfig(short_side=40, resize_filter="bilinear_aa")
    scale = 40 / min(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    for top, left in ((0.0, 0.0), (0.999, 0.999), (0.4, 0.7)):
        made = resmall_crop(open_image(data), config, Frame(32, 32, config.resize_filter), numbers(top, left)).astype(
            int
        )
        row, column = int(top * (height - 31)), int(left * (width - 31))
        assert np.abs(made - resized[row : row + 32, column : column + 32]).max() <= 2


def test_every_place_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp of 40 pixels cropped to 32: the corner's value says the place; 17 of them with the reflected edges."""
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="PNG")
    config = ResmallConfig(short_side=40, hflip=0.0)
    made = TrainTransform(config, 32, 32, seed=5)
    rows = made.numbers(np.zeros(900, dtype=np.int64), np.arange(900))
    corners = np.bincount([int(made(buffer.getvalue(), row)[0, 0, 0]) for row in rows], minlength=9)
    assert len(corners) == 9 and np.abs(corners - 100).max() < 45


def test_policies_draw_numbers_of_their_own() -> None:
    """Switching a policy on leaves the crop's and the flip's numbers, and those of the other policies, as they were."""
    ids, epochs = np.arange(5), np.zeros(5, dtype=np.int64)
    plain = TrainTransform(InceptionConfig(), 32, 32, seed=5).numbers(epochs, ids)
    jitter = TrainTransform(InceptionConfig(color_jitter=0.3), 32, 32, seed=5).numbers(epochs, ids)
    both_config = InceptionConfig(color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1")
    both = TrainTransform(both_config, 32, 32, seed=5).numbers(epochs, ids)
    assert plain.shape == (5, 41) and jitter.shape == (5, 47) and both.shape == (5, 55)
    assert np.array_equal(jitter[:, :41], plain) and np.array_equal(both[:, :41], plain)
    assert np.array_equal(both[:, -6:], jitter[:, -6:])
    copied = TrainTransform(InceptionConfig(), 32, 32, seed=5).numbers(epochs, ids, np.ones(5, dtype=np.int64))
    assert not np.isclose(copied, plain).any()


@pytest.mark.parametrize(
    "config",
    [
        {"randaugment": {"num_layers": 2, "magnitude": 15}},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "resize_filter": "bicubic_aa"},
        {"three_augment": True, "color_jitter": 0.3, "crop": "simple"},
    ],
)
def test_whole_transforms_give_images_of_the_right_kind(config: dict[str, Any]) -> None:
    data, _ = png(60, 81)
    made = TrainTransform(TypeAdapter(AnyTrainTransform).validate_python(config), 24, 32, seed=5)
    rows = made.numbers(np.zeros(60, dtype=np.int64), np.arange(60))
    images = [made(data, row) for row in rows]
    assert {(image.shape, image.dtype.name) for image in images} == {((24, 32, 3), "uint8")}
    assert all(np.array_equal(image, made(data, row)) for image, row in zip(images[:10], rows, strict=False))
