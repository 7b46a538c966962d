"""Decoding a part: bit for bit what a whole decode has there, for every kind of JPEG and every scale."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import sklearn.datasets
from PIL import Image

from pretrain.config.schema.transforms import InceptionConfig
from pretrain.data.images import decode, turbojpeg
from pretrain.data.images.crops import Frame, cut, inception_box
from pretrain.data.images.resize import FILTERS, resize
from pretrain.errors import BadSample

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"]

pytestmark = pytest.mark.skipif(not turbojpeg.available(), reason="libjpeg-turbo 3 is not there")


def photo(name: str = "china.jpg") -> bytes:
    return (PHOTOS / name).read_bytes()


def jpeg(subsampling: str, *, progressive: bool = False, size: tuple[int, int] = (203, 171)) -> bytes:
    image = Image.open(io.BytesIO(photo())).resize(size)
    buffer, options = io.BytesIO(), {} if subsampling == "grey" else {"subsampling": subsampling}
    image = image.convert("L" if subsampling == "grey" else "RGB")
    image.save(buffer, "JPEG", quality=85, progressive=progressive, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("eighths", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_part_is_that_of_the_whole(subsampling: str, progressive: bool, eighths: int) -> None:
    data, rng = jpeg(subsampling, progressive=progressive), np.random.default_rng(eighths)
    assert turbojpeg.read_size(data) == (171, 203)
    height, width = -(-171 * eighths // 8), -(-203 * eighths // 8)
    whole = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width, min_factor=1)
    assert whole.shape == (height, width, 3)
    for _ in range(12):
        box_height, box_width = rng.integers(1, height + 1), rng.integers(1, width + 1)
        top, left = rng.integers(0, height - box_height + 1), rng.integers(0, width - box_width + 1)
        part = turbojpeg.decode_part(data, int(top), int(left), int(box_height), int(box_width), eighths)
        made = part.pixels[top - part.top :, left - part.left :][:box_height, :box_width]
        assert np.array_equal(made, whole[top : top + box_height, left : left + box_width])


def test_only_the_part_is_decoded() -> None:
    part = turbojpeg.decode_part(photo(), 100, 200, 50, 60)
    assert part.pixels.shape[0] <= 50 + 2 * turbojpeg.MARGIN
    assert part.pixels.shape[1] <= 60 + 2 * turbojpeg.MARGIN + 16


def test_the_scale_is_that_of_a_whole_decode() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(1, 200, 2))
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG")
        lowest = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        whole = decode.open_image(buffer.getvalue()).decode(*lowest)
        eighths = decode.dct_eighths(height, width, *lowest)
        assert whole.shape[:2] == (-(-height * eighths // 8), -(-width * eighths // 8))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [24, 160])
def test_without_the_library_the_pixels_are_the_same(filter: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, rng = decode.open_image(photo()), np.random.default_rng(1)
    config = InceptionConfig()
    boxes = [inception_box(image.height, image.width, config, rng.random(40)) for _ in range(6)]
    with_library = [cut(image, box, Frame(size, size, filter)) for box in boxes]
    monkeypatch.setattr(turbojpeg, "available", lambda: False)
    image = decode.open_image(photo())
    assert all(
        np.array_equal(made, cut(image, box, Frame(size, size, filter)))
        for made, box in zip(with_library, boxes, strict=True)
    )


# Of a full decode and the same filter: the largest mean of a crop, the mean of all crops, the largest of a pixel.
TOLERANCE = {
    "bilinear": (0, 0, 0),
    "bilinear_aa": (2.0, 0.8, 35),
    "bicubic_aa": (2.5, 0.8, 35),
    "area": (3.0, 1.3, 40),
}


@pytest.mark.parametrize("filter", TOLERANCE)
def test_a_smaller_decode_stays_within_the_stated_tolerance(filter: str) -> None:
    """Real photos, boxes on the smaller decode's grid, as the documentation of ``cut`` says."""
    means, largest, scaled = [], 0, 0
    for name in ("china.jpg", "flower.jpg"):
        image, rng = decode.open_image(photo(name)), np.random.default_rng(0)
        full = image.decode()
        for size in (24, 48, 64, 96):
            for _ in range(12):
                numbers = rng.random(40)
                box = inception_box(image.height, image.width, InceptionConfig(), numbers)
                lowest = [
                    min(side, -(-2 * side * size // part)) for side, part in zip(full.shape, box[2:], strict=False)
                ]
                eighths = decode.dct_eighths(image.height, image.width, *lowest) if filter != "bilinear" else 8
                top, left, height, width = decode.scaled_box(box, image.height, image.width, eighths)
                edges = [round(edge * 8 / eighths) for edge in (top, left, top + height, left + width)]
                expected = resize(full[edges[0] : edges[2], edges[1] : edges[3]], size, size, filter).astype(int)
                difference = np.abs(cut(image, box, Frame(size, size, filter)).astype(int) - expected)
                means.append(difference.mean())
                largest, scaled = max(largest, int(difference.max())), scaled + (eighths < 8)
    mean, average, pixel = TOLERANCE[filter]
    assert max(means) <= mean and np.mean(means) <= average and largest <= pixel
    assert scaled > 40 or filter == "bilinear"


@pytest.mark.parametrize("cut_at", [200, 5_000])
def test_damaged_files_are_for_pillow_to_judge(cut_at: int) -> None:
    data = photo()[:cut_at]
    with pytest.raises(turbojpeg.DecodeError):
        turbojpeg.decode_part(data, 300, 0, 100, 100)
    with pytest.raises(BadSample, match="decode"):
        decode.open_image(data).decode_box((300, 0, 100, 100))
    assert turbojpeg.read_size(photo()) == (427, 640), "the next image is not blamed"


def test_an_unusual_colour_space_is_left_to_pillow() -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo())).convert("CMYK").save(buffer, "JPEG")
    with pytest.raises(turbojpeg.DecodeError, match="colour space"):
        turbojpeg.read_size(buffer.getvalue())
    image = decode.open_image(buffer.getvalue())
    assert np.array_equal(image.decode_box((10, 20, 30, 40)), image.decode()[10:40, 20:60])


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photo_has_its_box_where_the_upright_image_has_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo())).save(buffer, "JPEG", exif=exif)
    image = decode.open_image(buffer.getvalue())
    box = (100, 50, 200, 150)
    assert np.array_equal(image.decode_box(box, 60, 60), decode.inside(image.decode(), box))


def test_threads_have_decoders_of_their_own() -> None:
    expected, wrong = decode.open_image(photo()).decode(), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            top, left = int(rng.integers(0, 300)), int(rng.integers(0, 500))
            made: Any = decode.open_image(photo()).decode_box((top, left, 100, 100))
            if not np.array_equal(made, expected[top : top + 100, left : left + 100]):
                wrong.append((top, left))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
