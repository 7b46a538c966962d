from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pretrain.data.images import opening
from pretrain.data.images.decode import open_image
from pretrain.data.images.opening import decode_strictly
from pretrain.errors import BadSample

HEIGHT, WIDTH = 48, 64
ORIENTATION = 0x0112


def picture(mode: str = "RGB") -> Image.Image:
    """Something smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 255 / (HEIGHT + WIDTH)], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, image_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(picture(), image_format, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(picture(), "JPEG", quality=95), 1),
        (encode(picture(), "JPEG", quality=95, progressive=True), 1),
        (encode(picture(), "JPEG", quality=95, subsampling=0), 1),
        (encode(picture("L"), "JPEG", quality=95), 1),
        (encode(picture("CMYK"), "JPEG", quality=95), 0),
        (encode(picture(), "PNG"), 0),
        (encode(picture("L"), "PNG"), 0),
        (encode(picture("1"), "PNG"), 0),
        (encode(picture("P"), "PNG"), 0),
        (encode(picture("P"), "GIF"), 0),
        (encode(picture(), "WEBP", lossless=True), 0),
        (encode(picture(), "BMP"), 0),
        (encode(picture(), "TIFF"), 0),
    ],
    ids=lambda value: value[:4].hex() if isinstance(value, bytes) else str(value),
)
def test_every_kind_of_image_becomes_the_rgb_that_pillow_sees(data, tolerance):
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    opened = open_image(data)
    pixels = opened.decode()
    assert (opened.height, opened.width) == pixels.shape[:2] == (HEIGHT, WIDTH)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_three_equal_channels(mode):
    for image_format in ("PNG", "JPEG"):
        pixels = open_image(encode(picture(mode), image_format)).decode()
        assert np.array_equal(pixels[..., 0], pixels[..., 1])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode):
    image = picture("RGBA")
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    alpha[:, WIDTH // 2 :] = 255
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        image = picture("P")
        image.info["transparency"] = image.getpixel((0, 0))
    else:
        image = image.convert(mode)
    pixels = open_image(encode(image, "PNG")).decode()
    assert pixels[0, 0].tolist() == [255, 255, 255]
    if mode == "RGBA":
        assert np.array_equal(pixels[:, WIDTH // 2 :], np.asarray(picture())[:, WIDTH // 2 :])


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(image_format):
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 21).astype(np.uint16)
    pixels = open_image(encode(Image.fromarray(deep), image_format)).decode()
    assert np.array_equal(pixels[..., 1], (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 200, 255]], dtype=np.int32), [0, 200, 255]),
        (np.array([[0, 200, 65535]], dtype=np.int32), [0, 0, 255]),
        (np.array([[0, 200 << 16, (1 << 24) - 1]], dtype=np.int32), [0, 200, 255]),
        (np.array([[0, 100 << 23, (1 << 31) - 1]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 0.5, 1]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 0.5, 1.001]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, 100 * 257, 65535]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0, np.nan, 1]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_deep_grey(values, expected):
    pixels = open_image(encode(Image.fromarray(values), "TIFF")).decode()
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[[-3, 200]], [[-0.5, 0.5]], [[0, 1e6]], [[0, np.inf]]])
def test_grey_in_no_known_range_is_refused(values):
    data = np.array(values, dtype=np.float32 if any(isinstance(value, float) for value in values[0]) else np.int32)
    with pytest.raises(BadSample, match="convert it to 8 bits"):
        open_image(encode(Image.fromarray(data), "TIFF"))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation, image_format):
    data = with_orientation(orientation, image_format)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    opened = open_image(data)
    assert (opened.height, opened.width) == expected.shape[:2]
    assert np.abs(opened.decode().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_no_smaller_than_asked(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(picture().resize((640, 480)), "JPEG", exif=exif)
    opened = open_image(data)
    small = opened.decode(min_height=opened.height // 5, min_width=opened.width // 5)
    assert small.shape[:2] == (opened.height // 4, opened.width // 4)
    reference = Image.fromarray(opened.decode()).resize(small.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(small.astype(int) - np.asarray(reference).astype(int)).mean() < 2


JPEG = encode(picture(), "JPEG")
PNG = encode(picture(), "PNG")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", JPEG[:100], JPEG[: len(JPEG) // 2], PNG[: len(PNG) // 2], b"\xff\xd8\xff", PNG[:8] + b"x" * 50],
    ids=["empty", "text", "jpeg header", "half a jpeg", "half a png", "jpeg start", "png garbage"],
)
def test_damaged_images_are_bad_samples(data):
    with pytest.raises(BadSample, match="decode: "):
        open_image(data).decode()
    with pytest.raises(BadSample, match="decode: "):
        decode_strictly(data)


def test_the_reason_of_two_equal_failures_is_equal():
    def reason() -> str:
        with pytest.raises(BadSample) as caught:
            decode_strictly(b"hello")
        return str(caught.value)

    assert reason() == reason()
    assert reason().startswith("decode: not an image, or its first bytes are damaged; formats that are read: ")


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_too_many_pixels_are_refused_before_decoding(data, monkeypatch):
    monkeypatch.setattr(opening, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(BadSample, match="too_large: 64×48 pixels"):
        open_image(data)
    monkeypatch.setattr(opening, "MAX_PIXELS", HEIGHT * WIDTH)
    open_image(data).decode()


def test_a_decompression_bomb_is_refused():
    data = bytearray(PNG)
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # the size in the PNG header
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(BadSample, match="too_large"):
        open_image(bytes(data))


def test_decode_strictly_tells_the_upright_size():
    assert decode_strictly(with_orientation(6)).pixels.shape[:2] == (WIDTH, HEIGHT)
