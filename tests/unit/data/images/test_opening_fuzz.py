"""Damaged files by the thousand, from fixed seeds: a picture or a ``BadSample``, the same wherever it is opened."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, features

from pipelines.pack.images import ImageOptions, make_image
from pretrain.data.images import opening
from pretrain.data.images.decode import open_image
from pretrain.data.images.masks import read_mask
from pretrain.data.images.opening import decode_strictly
from pretrain.errors import BadSample
from tests.unit.data.images.test_opening import PROFILES, SRGB, encode, picture

NUM_DAMAGED = 60
SECONDS = 20.0  # of the processor, for one image: the bound of a hang, not of a speed


def files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small, icc = picture().resize((40, 30)), PROFILES["Display P3"]
    made = {
        "JPEG": encode(small, "JPEG", exif=exif.tobytes(), icc_profile=SRGB, comment=b"x"),
        "progressive": encode(small, "JPEG", progressive=True, icc_profile=icc),
        "CMYK": encode(small.convert("CMYK"), "JPEG"),
        "PNG": encode(small, "PNG", exif=exif.tobytes(), icc_profile=icc),
        "palette": encode(small.quantize(9), "PNG", transparency=0),
        "16 bits": encode(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
        "float": encode(Image.fromarray(np.random.default_rng(0).random((30, 40), dtype=np.float32)), "TIFF"),
        "TIFF": encode(small, "TIFF", compression="tiff_lzw", exif=exif.tobytes(), icc_profile=icc),
        "GIF": encode(small.quantize(9), "GIF", save_all=True, append_images=[small.quantize(5)]),
        "WebP": encode(small, "WEBP", exif=exif.tobytes(), icc_profile=icc),
        "lossless WebP": encode(small.convert("RGBA"), "WEBP", lossless=True),
        "BMP": encode(small, "BMP"),
        "PPM": encode(small, "PPM"),
    }
    if features.check("jpg_2000"):
        made["JPEG 2000"] = encode(small, "JPEG2000")
    return made


def damaged(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """Flipped bits, cut ends, doubled and zeroed stretches, most of them in the header, and other files' beginnings."""
    for number in range(NUM_DAMAGED):
        spoilt = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, len(data) if number % 3 else min(len(data), 200)))
            kind = int(rng.integers(0, 5))
            if kind == 0:
                spoilt[place % max(len(spoilt), 1) : place % max(len(spoilt), 1) + 1] = bytes(
                    [int(rng.integers(0, 256))]
                )
            elif kind == 1:
                del spoilt[place:]
            elif kind == 2:
                spoilt[place:place] = spoilt[max(0, place - 30) : place]
            elif kind == 3:
                spoilt[place : place + 4] = b"\xff\xff\xff\xff"
            else:
                spoilt[place : place + 8] = bytes(8)
        yield bytes(spoilt)


@pytest.mark.parametrize("name", files())
def test_a_damaged_file_is_a_picture_or_a_bad_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_PIXELS", 1_000_000)  # a header may ask for millions, which takes seconds
    data = files()[name]
    for spoilt in damaged(data, np.random.default_rng(sum(name.encode()))):
        begun = time.process_time()
        seen = [look(spoilt) for look in (of_pack, of_training, of_mask, of_packing)]
        assert time.process_time() - begun < SECONDS
        assert (seen[0] is None) == (seen[1] is None), "packing and training agree on what is an image"
        if seen[0] is not None and seen[1] is not None:
            assert seen[0].shape == seen[1].shape
            np.testing.assert_array_equal(seen[0], seen[1])


def of_pack(data: bytes) -> np.ndarray | None:
    try:
        return decode_strictly(data).pixels
    except BadSample:
        return None


def of_training(data: bytes) -> np.ndarray | None:
    try:
        image = open_image(data)
        pixels = image.decode()
        assert pixels.shape == (image.height, image.width, 3) and pixels.dtype == np.uint8
        box = (0, 0, max(1, image.height // 2), max(1, image.width // 2))
        assert image.decode_box(box).shape[:2] == box[2:]
        return pixels
    except BadSample:
        return None


def of_mask(data: bytes) -> None:
    try:
        assert read_mask(data).dtype == np.uint8
    except BadSample as bad:
        assert bad.kind in ("mask", "too_large")


def of_packing(data: bytes) -> None:
    try:
        made = make_image(data, "jpg", ImageOptions("rgb"))
    except BadSample:
        return
    with Image.open(io.BytesIO(made.data)) as image:
        assert (image.mode, image.size) == ("RGB", made.size[::-1])
