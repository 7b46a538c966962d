"""RandAugment's operations against the pixels of TensorFlow's reference code (tests/golden/make/tf_randaugment.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.images.policies.big_vision import OPERATIONS, SIGNED, BigVisionRandAugment
from tests.golden.pictures import FLAT, flat, picture

HERE = Path(__file__).parent
SIZES = {"small": (13, 19, 1), "tall": (29, 11, 1), "square": (224, 224, 16), "wide": (251, 263, 19)}


@cache
def traces(label: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "traces" / f"tf_randaugment_{label}.npz", allow_pickle=False) as file:
        return dict(file)


def apply(name: str, level: float, sign: int, centre: np.ndarray, image: np.ndarray) -> np.ndarray:
    operation = OPERATIONS[name]
    return operation.apply(image, sign * operation.argument(level), (centre + 0.5) / np.array(image.shape[:2]))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("label", SIZES)
def test_every_pixel_is_tensorflows(label: str, name: str) -> None:
    height, width, step = SIZES[label]
    image, trace = picture(height, width), traces(label)
    rows = np.flatnonzero(trace["operation"] == name)
    assert len(rows) >= 9  # levels 0 … 25
    for row in rows:
        level, sign = int(trace["level"][row]), int(trace["sign"][row])
        made = apply(name, level, sign, trace["centre"][row], image)
        assert made.dtype == np.uint8 and made.shape == image.shape
        assert np.array_equal(made[::step, ::step], trace["result"][row]), (level, sign)


@pytest.mark.parametrize("label", FLAT)
def test_flat_images_are_tensorflows(label: str) -> None:
    trace = traces("flat")
    rows = [row for row, name in enumerate(trace["operation"]) if name.startswith(f"{label}/")]
    assert len(rows) == 7 * 9
    for row in rows:
        name, level = trace["operation"][row].split("/")[1], int(trace["level"][row])
        made = apply(name, level, 1, trace["centre"][row], flat(label))
        assert np.array_equal(made, trace["result"][row]), (name, level)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (1, 40)])
def test_images_of_a_pixel_or_two_pass_every_operation(size: tuple[int, int]) -> None:
    """The reference cannot smooth them; here what has no neighbourhood stays."""
    image = picture(*size)
    for name in OPERATIONS:
        assert apply(name, 10, 1, np.zeros(2), image).shape == image.shape
    assert size == (3, 3) or np.array_equal(apply("Sharpness", 10, 1, np.zeros(2), image), image)


def test_the_operations_are_the_references() -> None:
    trace = traces("square")
    assert set(trace["operation"]) == set(OPERATIONS)
    assert set(trace["operation"][trace["sign"] < 0]) == SIGNED


def test_of_the_images_of_light1_none_becomes_black() -> None:
    """At level 0, Posterize keeps the highest bit: what is bright stays visible."""
    image, names = picture(40, 40), list(OPERATIONS)
    row = [(names.index("Posterize") + 0.5) / len(names), 0, 0.5, 0.5]
    made = BigVisionRandAugment(2, 0)(image, np.array(row * 2))
    assert set(np.unique(made)) == {0, 128} and np.array_equal(made == 128, image >= 128)
