"""The evaluation transforms on images of odd sizes, from the file: size and place are torchvision's and timm's.

The pictures are noise, where a place that is one pixel off, or a side one pixel longer, changes most pixels by tens of
levels; Pillow's and PyTorch's kernels of the same filter differ by two at most.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform  # type: ignore[attr-defined]
from torchvision import transforms as tv

from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform

RNG = np.random.default_rng(0)
SIZES = [(333, 501), (501, 333), *((int(h), int(w)) for h, w in RNG.integers(40, 360, (18, 2)))]
FILTERS = {
    "bilinear_aa": ("bilinear", tv.InterpolationMode.BILINEAR),
    "bicubic_aa": ("bicubic", tv.InterpolationMode.BICUBIC),
}
FRACTIONS = (0.875, 0.9)


def png(size: tuple[int, int]) -> bytes:
    noise = np.random.default_rng(size).integers(88, 168, (*size, 3), dtype=np.uint8)  # a cubic filter clips none
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def difference(ours: np.ndarray, theirs: Any) -> int:
    assert ours.shape == np.asarray(theirs).shape
    return int(np.abs(ours.astype(int) - np.asarray(theirs)).max())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_they_are_torchvisions(size: tuple[int, int]) -> None:
    data = png(size)
    picture: Any = Image.open(io.BytesIO(data))
    for filter, (_, mode) in FILTERS.items():
        for fraction in FRACTIONS:
            side = 96
            resized = int(side / fraction)
            crop = tv.CenterCrop(side)
            for resize, theirs in (
                ("short_side", tv.Resize(resized, mode)),
                ("squash_crop", tv.Resize((resized,) * 2, mode)),
            ):
                config = EvalTransformConfig.model_validate(
                    {"resize": resize, "crop_fraction": fraction, "resize_filter": filter}
                )
                assert difference(EvalTransform(config, side, side)(data), crop(theirs(picture))) <= 2, (
                    resize,
                    fraction,
                )
        squash = EvalTransformConfig.model_validate({"resize": "squash", "resize_filter": filter})
        assert difference(EvalTransform(squash, 64, 96)(data), tv.Resize((64, 96), mode)(picture)) <= 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model", [(96, 96), (64, 96)], ids=str)
def test_they_are_timms(size: tuple[int, int], model: tuple[int, int]) -> None:
    data = png(size)
    picture: Any = Image.open(io.BytesIO(data))
    for resize, mode, fraction in (
        ("short_side", "center", 0.875),
        ("short_side", "center", 0.9),
        ("squash_crop", "squash", 0.9),
    ):
        config = EvalTransformConfig.model_validate(
            {"resize": resize, "crop_fraction": fraction, "resize_filter": "bicubic_aa"}
        )
        steps: Any = create_transform(
            (3, *model), interpolation="bicubic", crop_mode=mode, crop_pct=fraction, normalize=False
        )
        kept = [step for step in steps.transforms if "Tensor" not in type(step).__name__]
        expected = picture
        for step in kept:
            expected = step(expected)
        assert difference(EvalTransform(config, *model)(data), expected) <= 2, (resize, fraction)
