from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from pretrain.config.schema.transforms import (
    EvalTransformConfig,
    InceptionConfig,
    ResmallConfig,
    SimpleConfig,
    SquashConfig,
)
from pretrain.data.images import resize as resizing
from pretrain.data.images.augment import EvalTransform, TrainTransform
from pretrain.data.images.crops import NUMBERS_PER_CROP, REFLECTED, Frame, resmall_crop, simple_crop
from pretrain.data.images.decode import open_image
from pretrain.data.images.resize import FILTERS, resize
from pretrain.errors import BadSample

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


SIDE = 32
MODES = {"bicubic_aa": InterpolationMode.BICUBIC, "bilinear_aa": InterpolationMode.BILINEAR}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def stripe(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def cropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes the way of extreme shapes."""
    monkeypatch.setattr(resizing, "MOST_PIXELS", 0)


@pytest.mark.usefixtures("cropped_first")
@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 1000), (7, 900), (45, 331), (50, 50), (308, 77)])
@pytest.mark.parametrize("filter", MODES)
def test_evaluation_gives_torchvisions_centre(size: tuple[int, int], filter: Any) -> None:
    pixels = stripe(*size)
    transform = EvalTransform(EvalTransformConfig(resize="short_side", resize_filter=filter), SIDE, SIDE)
    wanted = int(SIDE / transform.config.crop_fraction)
    picture: Any = Image.fromarray(pixels)
    resized: Any = tv.resize(picture, [wanted], MODES[filter])
    expected = np.asarray(tv.center_crop(resized, [SIDE, SIDE])).astype(int)
    difference = np.abs(transform(png(pixels)).astype(int) - expected)
    assert difference.mean() <= 1.5 and np.quantile(difference, 0.99) <= 8, (difference.mean(), difference.max())


@pytest.mark.usefixtures("cropped_first")
@pytest.mark.parametrize("size", [(1, 1500), (1500, 1), (3, 700), (40, 331), (50, 50)])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_the_simple_crop_gives_torchvisions_place(size: tuple[int, int], place: float) -> None:
    pixels, numbers = stripe(*size), np.zeros(NUMBERS_PER_CROP)
    numbers[:2] = place
    config = SimpleConfig(resize_filter="bicubic_aa")
    picture: Any = Image.fromarray(pixels)
    resized: Any = tv.resize(picture, [SIDE], InterpolationMode.BICUBIC)
    padded: Any = tv.pad(resized, [REFLECTED], padding_mode="reflect")
    top, left = (int(place * (side - SIDE + 1)) for side in padded.size[::-1])
    expected = np.asarray(tv.crop(padded, top, left, SIDE, SIDE)).astype(int)
    difference = np.abs(
        simple_crop(open_image(png(pixels)), config, Frame(SIDE, SIDE, config.resize_filter), numbers).astype(int)
        - expected
    )
    assert difference.mean() <= 1.5 and np.quantile(difference, 0.99) <= 8


@pytest.mark.usefixtures("cropped_first")
@pytest.mark.parametrize("size", [(1, 1500), (3, 700), (40, 331), (50, 50)])
def test_resmall_gives_pillows_place(size: tuple[int, int]) -> None:
    pixels, numbers = stripe(*size), np.full(NUMBERS_PER_CROP, 0.4)
    config = ResmallConfig(short_side=40, resize_filter="bilinear_aa")
    scale = 40 / min(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    top, left = int(0.4 * (height - SIDE + 1)), int(0.4 * (width - SIDE + 1))
    made = resmall_crop(open_image(png(pixels)), config, Frame(SIDE, SIDE, config.resize_filter), numbers).astype(int)
    difference = np.abs(made - resized[top : top + SIDE, left : left + SIDE])
    assert difference.mean() <= 1.5 and np.quantile(difference, 0.99) <= 8


def transforms() -> dict[str, Callable[[bytes], np.ndarray]]:
    numbers = np.full(NUMBERS_PER_CROP + 1, 0.6)
    made: dict[str, Callable[[bytes], np.ndarray]] = {
        name: lambda data, config=config: TrainTransform(config, 224, 224, 1)(data, numbers)
        for name, config in {
            "simple": SimpleConfig(resize_filter="bicubic_aa"),
            "resmall": ResmallConfig(short_side=256, resize_filter="bilinear_aa"),
            "inception": InceptionConfig(),
            "resize": SquashConfig(),
        }.items()
    }
    for filter in ("bicubic_aa", "bilinear_aa", "bilinear", "area"):
        config = EvalTransformConfig(resize="short_side", resize_filter=filter)
        made[f"evaluation {filter}"] = EvalTransform(config, 224, 224)
    made["evaluation squash"] = EvalTransform(EvalTransformConfig(resize="squash"), 224, 224)
    return made


@pytest.mark.parametrize("name", transforms())
@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (2, 30_000)])
def test_a_line_of_pixels_needs_little_memory(name: str, size: tuple[int, int]) -> None:
    """Its resized copy would have two billion pixels."""
    data = png(np.broadcast_to(np.array([200, 100, 50], np.uint8), (*size, 3)))
    tracemalloc.start()
    made = transforms()[name](data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.shape == (224, 224, 3) and np.abs(made.astype(int) - [200, 100, 50]).max() <= 1
    assert peak < 64 << 20, "NumPy's memory is traced"


def test_pytorch_and_opencv_need_little_memory_too() -> None:
    """Under a limit of the address space that the resized image would not fit into."""
    code = (
        "import resource, torch, numpy as np\n"
        "from tests.unit.data.images.test_resize import png, transforms\n"
        "torch.set_num_threads(1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)\n"
        "data = png(np.zeros((1, 40_000, 3), np.uint8))\n"
        "for name, transform in transforms().items(): assert transform(data).max() <= 1, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_does_not_fit_is_a_bad_sample() -> None:
    with pytest.raises(BadSample, match="do not fit into memory"):
        resize(np.zeros((1, 1, 3), np.uint8), 1 << 30, 1 << 30, "bilinear")
