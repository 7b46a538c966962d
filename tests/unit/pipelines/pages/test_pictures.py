"""Small copies of images: their size and form."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipelines.pages.pictures import Picture, embedded, thumbnail
from pretrain.errors import BadSample


def encoded(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def opened(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.address.partition("base64,")[2])))


@pytest.mark.parametrize(
    ("height", "width", "size", "form"),
    [(400, 300, (120, 160), "JPEG"), (100, 900, (160, 18), "JPEG"), (8, 8, (8, 8), "PNG"), (64, 32, (32, 64), "PNG")],
)
def test_a_thumbnail(height: int, width: int, size: tuple[int, int], form: str) -> None:
    picture = thumbnail(encoded(height, width))
    image = opened(picture)
    assert image.size == size and image.format == form
    assert picture.is_tiny == (form == "PNG") and picture.address.startswith(f"data:image/{form.lower()};base64,")


def test_a_drawing_keeps_its_size_unless_it_is_too_wide() -> None:
    assert opened(embedded(encoded(100, 200), 300)).size == (200, 100)
    assert opened(embedded(encoded(300, 600), 200)).size == (200, 100)


def test_what_is_not_an_image_is_refused() -> None:
    with pytest.raises(BadSample):
        thumbnail(b"text")
