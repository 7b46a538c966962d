"""Resizing and evaluation images against TensorFlow and big_vision's pipeline (tests/golden/make/tf_resize.py).

Google's pipelines cut a resized image off to bytes where we round, so that ours has the same level or the one above.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.resize import resize
from tests.golden.pictures import picture


@pytest.fixture(scope="module")
def traces() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "traces" / "tf_resize.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_bilinear_and_area_are_tensorflows_to_a_level(traces: dict[str, np.ndarray]) -> None:
    traces = {key: array for key, array in traces.items() if key.startswith("resize/")}
    assert len(traces) == 8
    for key, theirs in traces.items():
        _, method, *sizes, step = key.split("/")
        (height, width), (to_height, to_width) = (map(int, size.split("x")) for size in sizes)
        made = resize(picture(height, width), to_height, to_width, method).astype(float)[:: int(step), :: int(step)]
        assert np.abs(made - theirs).max() < 0.8, key
        above = made - np.floor(theirs)
        assert above.min() >= 0 and above.max() <= 1 and 0.2 < above.mean() < 0.6, key


def test_resmall_evaluates_as_big_vision(traces: dict[str, np.ndarray]) -> None:
    """resize_small(37) and central_crop(32) of odd sizes: the long side is rounded, the crop's place is cut off."""
    config = EvalTransformConfig(resize="resmall", crop_fraction=32 / 37.5, resize_filter="area")
    traces = {key: array for key, array in traces.items() if key.startswith("evaluation/")}
    assert len(traces) == 8
    rounded_down = config.model_copy(update={"resize": "short_side"})
    others = 0
    for key, theirs in traces.items():
        height, width = map(int, key.split("/")[1].split("x"))
        buffer = io.BytesIO()
        Image.fromarray(picture(height, width)).save(buffer, format="PNG")
        above = EvalTransform(config, 32, 32)(buffer.getvalue()).astype(int) - theirs
        assert above.min() >= 0 and above.max() <= 1, key
        other = EvalTransform(rounded_down, 32, 32)(buffer.getvalue()).astype(int) - theirs
        others += bool(np.abs(other).max() > 1)
    assert others >= 3, "the sizes tell the two roundings apart"
