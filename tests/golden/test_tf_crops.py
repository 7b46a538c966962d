"""The law of inception_tf's boxes against TensorFlow's own draws (tests/golden/make/tf_crops.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pretrain import seeds
from pretrain.data.images.crops import NUMBERS_PER_CROP, distorted_box

DRAWS = 8000
RATIO = (0.75, 1.33)
LEAST_P = 1e-4  # of one comparison; the draws are fixed, so that the outcome is too


@cache
def tensorflows() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "traces" / "tf_crops.npz", allow_pickle=False) as file:
        return {size: file[size].astype(np.int64) for size in file.files}


@cache
def ours(size: str) -> np.ndarray:
    height, width = map(int, size.split("x"))
    numbers = seeds.uniform(5, "test", np.arange(DRAWS)[:, None], np.arange(NUMBERS_PER_CROP))
    return np.array([distorted_box(height, width, 0.05, RATIO, row) for row in numbers])


def p_value(values: np.ndarray, others: np.ndarray) -> float:
    """Of the Kolmogorov-Smirnov test that both come from one law."""
    result: Any = ks_2samp(values, others)
    return float(result.pvalue)


def shares(boxes: np.ndarray, size: str) -> dict[str, np.ndarray]:
    """Values to compare, each a function of the box alone."""
    height, width = map(int, size.split("x"))
    top, left, box_height, box_width = boxes.T
    return {
        "area": box_height * box_width / (height * width),
        "aspect": box_width / box_height,
        "height": box_height,
        "top": top / np.maximum(1, height - box_height),
        "left": left / np.maximum(1, width - box_width),
        "area by aspect": box_height * box_width * np.log(box_width / box_height),
    }


@pytest.mark.parametrize("size", ["375x500", "500x333", "224x224", "17x23", "5x4", "40x400", "10x258", "10x1000"])
def test_boxes_follow_tensorflows_law(size: str) -> None:
    theirs = shares(tensorflows()[size], size)
    for name, values in shares(ours(size), size).items():
        assert p_value(values, theirs[name]) > LEAST_P, name
        assert values.mean() == pytest.approx(theirs[name].mean(), abs=4 * theirs[name].std() / 4000**0.5 + 1e-12), name


def test_the_boxes_of_a_tiny_image_are_exactly_tensorflows() -> None:
    """Where every box can be counted: the same ones occur, and none at the last row or column."""
    for size in ("5x4", "17x23"):
        common = [set(map(tuple, boxes[:, 2:].tolist())) for boxes in (ours(size), tensorflows()[size])]
        assert common[0] == common[1] if size == "5x4" else len(common[0] ^ common[1]) < 0.05 * len(common[1])
    counts = [np.unique(boxes, axis=0, return_counts=True) for boxes in (ours("5x4"), tensorflows()["5x4"])]
    assert np.array_equal(counts[0][0], counts[1][0])
    expected = counts[1][1] * DRAWS / 4000
    assert np.abs(counts[0][1] - expected).max() < 5 * np.sqrt(3 * expected.max())


@pytest.mark.parametrize(("size", "complete"), [("10x1000", 1.0), ("10x258", 0.0)])
def test_the_fallback_is_the_complete_image(size: str, complete: float) -> None:
    """In 10 × 1000 no box fits; in 10 × 258 every seventh attempt does, so that a hundred find one."""
    whole = [0, 0, *map(int, size.split("x"))]
    assert (tensorflows()[size] == whole).all(axis=1).mean() == complete
    assert (ours(size) == whole).all(axis=1).mean() == complete


def test_torchvisions_law_is_another_one() -> None:
    """The comparison can tell them apart: mean areas of 0.35 and 0.42 at 375 × 500."""
    from pretrain.config.schema.transforms import InceptionConfig
    from pretrain.data.images.crops import inception_box

    numbers = seeds.uniform(5, "test", np.arange(2000)[:, None], np.arange(NUMBERS_PER_CROP))
    torchvisions = np.array([inception_box(375, 500, InceptionConfig(min_area=0.05), row) for row in numbers])
    other, theirs = shares(torchvisions, "375x500")["area"], shares(tensorflows()["375x500"], "375x500")["area"]
    assert p_value(other, theirs) < 1e-20
    assert (other.mean(), theirs.mean()) == pytest.approx((0.415, 0.346), abs=0.01)
