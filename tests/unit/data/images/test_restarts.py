"""Restart markers: the pixels stay those of a full decode, bit for bit, also when only a part is decoded."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image

from pretrain.config.schema.transforms import EvalTransformConfig, InceptionConfig
from pretrain.data.images import restarts, turbojpeg
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.containers import read_jpeg_coding
from pretrain.data.images.crops import Frame, cut, inception_box
from pretrain.data.images.decode import open_image

CHINA = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"]
SIZES = [(640, 427), (333, 250), (500, 375), (449, 161), (130, 401)]  # 449: the row of 29 MCUs of 16 has no divisor

pytestmark = [
    pytest.mark.skipif(not restarts.available(), reason="the C extension is not built"),
    pytest.mark.skipif(not turbojpeg.available(), reason="libjpeg-turbo 3 is not there"),
]


def jpeg(subsampling: str = "4:2:0", size: tuple[int, int] = (500, 375), **options: object) -> bytes:
    image = Image.open(CHINA).resize(size).convert("L" if subsampling == "grey" else "RGB")
    if subsampling != "grey":
        options["subsampling"] = subsampling
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 85, **options})  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def marked(data: bytes) -> bytes:
    made = restarts.add_restarts(data)
    assert made is not None and made is not data
    return made


def full(data: bytes) -> NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)


def markers(data: bytes) -> int:
    scan = data[data.index(b"\xff\xda") :]
    return sum(scan.count(bytes([0xFF, number])) for number in range(0xD0, 0xD8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_reader_sees_the_same_pixels(subsampling: str, size: tuple[int, int]) -> None:
    data = jpeg(subsampling, size)
    made = marked(data)
    assert np.array_equal(full(made), full(data))
    one, other = (np.asarray(Image.open(io.BytesIO(file))) for file in (made, data))
    assert np.array_equal(one, other)
    one, other = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in (made, data))
    assert one is not None and other is not None and np.array_equal(one, other)
    assert restarts.add_restarts(made) is made, "a second time changes nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"optimize": True},
        {"quality": 20},
        {"quality": 100},
        {"restart_marker_blocks": 7},
        {"restart_marker_rows": 2},
        {"restart_marker_blocks": 1, "optimize": True},
    ],
    ids=str,
)
def test_any_tables_and_intervals_are_read(options: dict[str, object]) -> None:
    data = jpeg(**options)  # pyright: ignore[reportArgumentType]
    made = marked(data)
    assert np.array_equal(full(made), full(data))
    assert read_jpeg_coding(made).restart_interval == 4


@pytest.mark.parametrize(
    ("subsampling", "width", "blocks", "num_intervals"),
    [
        ("4:2:0", 500, 4, 8),  # 32 MCUs of 16 pixels
        ("4:2:0", 400, 5, 5),
        ("4:2:0", 336, 3, 7),
        ("4:2:0", 449, 29, 1),  # a prime number of MCUs
        ("4:4:4", 500, 7, 9),  # 63 MCUs of 8 pixels
        ("grey", 640, 8, 10),
    ],
)
def test_intervals_are_about_64_pixels_and_divide_a_row(
    subsampling: str, width: int, blocks: int, num_intervals: int
) -> None:
    made = marked(jpeg(subsampling, (width, 320)))
    rows = 320 // (16 if subsampling == "4:2:0" else 8)
    assert read_jpeg_coding(made).restart_interval == blocks
    assert markers(made) == rows * num_intervals - 1


@pytest.mark.parametrize("quality", [60, 85, 95])
def test_the_file_grows_by_little(quality: int) -> None:
    data = jpeg(quality=quality, optimize=True)
    assert len(marked(data)) < 1.03 * len(data)


def test_a_small_image_stays_as_it_is() -> None:
    data = jpeg(size=(64, 48))
    assert restarts.add_restarts(data) is data


@pytest.mark.parametrize("options", [{"progressive": True}, {"mode": "CMYK"}])
def test_other_kinds_are_refused(options: dict[str, object]) -> None:
    data = jpeg(**options)  # pyright: ignore[reportArgumentType]
    if "mode" in options:
        buffer = io.BytesIO()
        Image.open(CHINA).convert("CMYK").save(buffer, "JPEG")
        data = buffer.getvalue()
    assert restarts.add_restarts(data) is None
    assert restarts.cut(data, 0, 0, 50, 50) is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_random_boxes_equal_those_of_a_full_decode(subsampling: str, size: tuple[int, int]) -> None:
    """At full size and scaled by eighths, as crops of a small model need."""
    data = jpeg(subsampling, size)
    image, rng = open_image(marked(data)), np.random.default_rng(size[0])
    whole = {}
    for share in (1, 2, 8 / 3, 4, 8):
        lowest = tuple(int(np.ceil(side / share)) for side in size[::-1])
        whole[lowest] = simplejpeg.decode_jpeg(
            data, colorspace="RGB", min_height=lowest[0], min_width=lowest[1], min_factor=2
        )
    for _ in range(30):
        height, width = int(rng.integers(1, size[1] + 1)), int(rng.integers(1, size[0] + 1))
        top, left = int(rng.integers(0, size[1] - height + 1)), int(rng.integers(0, size[0] - width + 1))
        assert np.array_equal(
            image.decode_box((top, left, height, width)), full(data)[top : top + height, left : left + width]
        )
        for lowest, pixels in whole.items():
            made = image.decode_box((top, left, height, width), *lowest)
            plain = open_image(data).decode_box((top, left, height, width), *lowest)
            assert np.array_equal(made, plain)
            assert pixels.shape[0] == size[1] or made.shape[0] < height or height < 8


def test_only_a_part_is_cut() -> None:
    data = marked(jpeg())
    part = restarts.cut(data, 100, 200, 50, 60)
    assert part is not None
    assert (part.top, part.left) == (96, 192) and full(part.data).shape == (64, 128, 3)
    assert np.array_equal(full(part.data)[6:50, 10:60], full(data)[102:146, 202:252])
    assert restarts.cut(data, 0, 0, 375, 500) is None, "of a complete image nothing is saved"
    assert restarts.cut(jpeg(), 100, 200, 50, 60) is None, "without markers"


@pytest.mark.parametrize("box", [(-9, -9, 20, 20), (370, 490, 99, 99), (0, 0, 1, 1), (2**31 - 1, 0, 2**31 - 1, 5)])
def test_a_box_may_extend_beyond_the_image(box: tuple[int, int, int, int]) -> None:
    part = restarts.cut(marked(jpeg()), *box)
    assert part is not None and full(part.data).size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(exif=exif)
    assert np.array_equal(
        open_image(marked(data)).decode_box((30, 40, 100, 90)), open_image(data).decode()[30:130, 40:130]
    )


@pytest.mark.parametrize("resize", ["short_side", "resmall", "squash"])
def test_evaluation_sees_the_same_pixels(resize: str) -> None:
    data = jpeg()
    transform = EvalTransform(EvalTransformConfig.model_validate({"resize": resize}), 64, 64)
    assert np.array_equal(transform(marked(data)), transform(data))


@pytest.mark.parametrize("size", [24, 64, 224])
def test_training_crops_are_the_same(size: int) -> None:
    plain, rng = open_image(jpeg()), np.random.default_rng(0)
    image = open_image(marked(jpeg()))
    for _ in range(20):
        box = inception_box(image.height, image.width, InceptionConfig(), rng.random(40))
        frame = Frame(size, size, "bilinear_aa")
        assert np.array_equal(cut(image, box, frame), cut(plain, box, frame))
