from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from pipelines.pack.images import ImageOptions, make_image
from pretrain.data.images.decode import open_image
from pretrain.errors import BadSample

RGB = ImageOptions(mode="rgb")
HEIGHT, WIDTH = 40, 60


def picture(mode: str = "RGB") -> Image.Image:
    """A smooth picture, as JPEG likes it."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=2).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((rows * 1600).astype(np.uint16))
    image = Image.fromarray(pixels)
    if mode == "LA":
        image = image.convert("L")
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((columns * 4).astype(np.uint8)))
    return image if image.mode == mode else image.convert(mode)


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("mode", "image_format", "extension", "tolerance"),
    [
        ("L", "JPEG", "jpg", 2),
        ("CMYK", "JPEG", "jpg", 6),
        ("L", "PNG", "png", 0),
        ("P", "PNG", "png", 0),
        ("RGBA", "PNG", "png", 0),
        ("LA", "PNG", "png", 0),
        ("I;16", "PNG", "png", 0),
        ("P", "GIF", "png", 0),
        ("RGB", "BMP", "png", 0),
        ("RGB", "TIFF", "png", 0),
        ("RGBA", "WEBP", "webp", 20),
    ],
)
def test_every_mode_becomes_rgb_and_looks_as_it_did(mode, image_format, extension, tolerance):
    data = encoded(picture(mode), image_format)
    made = make_image(data, image_format.lower(), RGB)
    after = opened(made.data)
    assert (after.mode, made.extension, made.size) == ("RGB", extension, (HEIGHT, WIDTH))
    before = open_image(data).decode().astype(int)
    assert np.abs(np.asarray(after).astype(int) - before).max() <= tolerance
    assert made.changes


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_metadata_goes_and_pixels_stay(image_format):
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    options: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": b"profile" * 30}
    if image_format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Comment", "a secret place")
    data = encoded(picture(), image_format, **options)
    made = make_image(data, image_format.lower(), RGB)
    assert b"secret" in data
    assert b"secret" not in made.data
    assert b"profile" not in made.data
    assert not opened(made.data).getexif()
    assert np.array_equal(np.asarray(opened(made.data)), np.asarray(opened(data)))
    assert made.changes == ("unreadable colour profile ignored", "metadata removed")
    assert make_image(made.data, image_format.lower(), RGB).data == made.data


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), "JPEG", exif=exif.tobytes(), quality=95)
    made = make_image(data, "jpg", RGB)
    wanted = open_image(data).decode().astype(int)
    assert np.asarray(opened(made.data)).shape == wanted.shape
    assert np.abs(np.asarray(opened(made.data)).astype(int) - wanted).mean() < 3
    assert opened(made.data).getexif().get(0x0112, 1) == 1
    assert made.changes == ("rotated",)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["4:2:0", "progressive", "4:4:4"]
)
def test_a_turned_photo_of_whole_blocks_loses_nothing(orientation, options):
    """Its coefficients are moved: its quantisation stays, and its pixels are Pillow's but for rounding."""
    image, exif = picture().resize((64, 48)), Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif.tobytes(), quality=60, **options)
    made = opened(make_image(data, "jpg", RGB).data)
    wanted = np.asarray(ImageOps.exif_transpose(opened(data))).astype(int)
    assert np.abs(np.asarray(made).astype(int) - wanted).max() <= 3
    assert np.abs(np.asarray(made).astype(int) - wanted).mean() < 0.5, "encoding anew at quality 95 gives 0.8"
    tables = [sorted(table) for table in made.quantization.values()]  # pyright: ignore[reportAttributeAccessIssue]
    assert tables == [sorted(table) for table in opened(data).quantization.values()]  # pyright: ignore
    assert not made.info.get("progressive")


@pytest.mark.parametrize(
    ("options", "image_format", "extension", "size"),
    [
        ({"short_side": 20}, "JPEG", "jpg", (20, 30)),
        ({"short_side": 20, "encode": "webp"}, "PNG", "webp", (20, 30)),
        ({"short_side": 41}, "PNG", "png", (HEIGHT, WIDTH)),
        ({"encode": "jpeg", "quality": 80}, "PNG", "jpg", (HEIGHT, WIDTH)),
        ({"encode": "jpeg"}, "JPEG", "jpg", (HEIGHT, WIDTH)),
    ],
)
def test_a_cap_and_another_format(options, image_format, extension, size):
    data = encoded(picture(), image_format)
    made = make_image(data, extension if extension == "jpg" else image_format.lower(), ImageOptions("rgb", **options))
    assert (made.extension, made.size, opened(made.data).size) == (extension, size, size[::-1])
    if size == (HEIGHT, WIDTH) and made.extension in (image_format.lower(), "jpg") and image_format != "PNG":
        assert made.data == data  # nothing to do, so nothing is lost


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (ImageOptions("rgb", min_side=41), "too_small"),
        (ImageOptions("keep", max_pixels=HEIGHT * WIDTH - 1), "too_large"),
    ],
)
def test_limits_of_size(options, kind):
    with pytest.raises(BadSample) as caught:
        make_image(encoded(picture(), "PNG"), "png", options)
    assert caught.value.kind == kind


def test_keep_keeps_every_byte():
    data = encoded(picture("RGBA"), "PNG")
    assert make_image(data, "png", ImageOptions("keep")) == (data, "png", (HEIGHT, WIDTH), (), (HEIGHT, WIDTH), 1, "")


@pytest.mark.parametrize("behind", ["video", "another picture"])
@pytest.mark.parametrize("progressive", [False, True])
def test_what_lies_behind_a_jpeg_goes_and_is_counted(behind, progressive):
    """A phone's motion photo: its pixels and its compressed bytes stay, the video behind them does not."""
    alone = encoded(picture(), "JPEG", quality=95, progressive=progressive)
    tail = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40 if behind == "video" else encoded(picture("L"), "JPEG")
    made, changes = make_image(alone + tail, "jpg", RGB), ("bytes behind the picture removed",)
    if progressive:
        assert made.changes == (*changes, "progressive made sequential")
        assert np.array_equal(np.asarray(opened(made.data)), np.asarray(opened(alone)))
    else:
        assert (made.data, made.changes) == (alone, changes)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(), "JPEG", quality=95, exif=exif.tobytes())
    assert make_image(turned + tail, "jpg", RGB).changes == ("rotated", "bytes behind the picture removed")
    assert make_image(alone + tail, "jpg", ImageOptions("keep")).data == alone + tail


@pytest.mark.parametrize("how", ["turned", "animated", "transparent", "smaller"])
def test_a_webp_without_losses_stays_without_losses(how):
    image, exif = picture("RGBA" if how == "transparent" else "RGB"), Image.Exif()
    exif[0x0112] = 3 if how == "turned" else 1
    options = {"save_all": True, "append_images": [picture("L").convert("RGB")]} if how == "animated" else {}
    data = encoded(image, "WEBP", lossless=True, exif=exif.tobytes(), **options)
    made = make_image(data, "webp", ImageOptions("rgb", short_side=20 if how == "smaller" else 0))
    white = Image.new("RGBA", image.size, "white")
    wanted = Image.alpha_composite(white, image).convert("RGB") if how == "transparent" else image
    wanted = wanted.rotate(180) if how == "turned" else wanted
    wanted = wanted.resize((30, 20), Image.Resampling.LANCZOS) if how == "smaller" else wanted
    np.testing.assert_array_equal(np.asarray(opened(made.data)), np.asarray(wanted))
    assert made.extension == "webp" and b"VP8L" in made.data
    lossy = make_image(encoded(image, "WEBP", quality=80, exif=exif.tobytes(), **options), "webp", RGB)
    assert b"VP8L" not in lossy.data


def test_a_jpeg_without_its_end_marker_gets_one():
    data = encoded(picture(), "JPEG", quality=95)
    made = make_image(data[:-2], "jpg", RGB)
    assert (made.data, made.changes) == (data, ("end marker added", "metadata removed"))
    with pytest.raises(BadSample, match="decode"):
        make_image(data[:-30], "jpg", RGB)


def test_sixteen_bits_a_channel_become_eight():
    """Stock readers see eight or sixteen bits of such a file, depending on the reader."""
    import cv2

    deep = (np.asarray(picture()).astype(np.uint16) << 8) + 77
    data = cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()
    made = make_image(data, "png", RGB)
    assert made.changes == ("16 bits a channel",)
    assert np.asarray(cv2.imdecode(np.frombuffer(made.data, np.uint8), cv2.IMREAD_UNCHANGED)).dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(opened(made.data)), np.asarray(picture()))
