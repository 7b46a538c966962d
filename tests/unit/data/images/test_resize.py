from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pretrain.data.images.resize import FILTERS, resize

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    noise = RNG.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


SIZES = [((300, 400), (224, 224)), ((60, 50), (224, 224)), ((500, 333), (32, 48)), ((8, 8), (16, 16))]


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize(
    ("filter", "peer"), [("bilinear_aa", Image.Resampling.BILINEAR), ("bicubic_aa", Image.Resampling.BICUBIC)]
)
def test_antialiased_filters_are_pillows(source, target, filter, peer):
    pixels = smooth(*source)
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], peer)).astype(int)
    difference = np.abs(resize(pixels, target[0], target[1], filter).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_area_is_the_mean_of_what_a_pixel_covers():
    pixels = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    expected = pixels.reshape(16, 4, 16, 6, 3).mean(axis=(1, 3))
    assert np.abs(resize(pixels, 16, 16, "area") - expected).max() <= 1


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_interpolates_between_four_pixel_centres(source, target):
    pixels = smooth(*source).astype(float)

    def along(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, size - 1), centre - low

    top, bottom, down = along(source[0], target[0])
    left, right, across = along(source[1], target[1])
    down, across = down[:, None, None], across[None, :, None]
    upper = pixels[top][:, left] * (1 - across) + pixels[top][:, right] * across
    lower = pixels[bottom][:, left] * (1 - across) + pixels[bottom][:, right] * across
    expected = upper * (1 - down) + lower * down
    assert np.abs(resize(pixels.astype(np.uint8), target[0], target[1], "bilinear") - expected).max() <= 1


@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_takes_views_and_read_only_pixels(filter):
    pixels = smooth(40, 60)
    view = pixels[5:35, 10:50]
    expected = resize(view.copy(), 20, 20, filter)
    assert np.array_equal(resize(view, 20, 20, filter), expected)
    frozen = view.copy()
    frozen.flags.writeable = False
    assert np.array_equal(resize(frozen, 20, 20, filter), expected)
    assert expected.shape == (20, 20, 3)


@pytest.mark.parametrize("filter", FILTERS)
def test_the_same_size_is_the_identity(filter):
    pixels = smooth(30, 20)
    assert np.array_equal(resize(pixels, 30, 20, filter), pixels)
