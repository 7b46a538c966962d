"""How levels and random numbers become operations; the pixels are those of tests/golden/test_tf_randaugment.py."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from pretrain import seeds
from pretrain.data.images.policies.big_vision import NUMBERS_PER_LAYER, OPERATIONS, SIGNED, BigVisionRandAugment

HEIGHT, WIDTH = 61, 80
LEVELS = [0, 5, 10, 15, 20]
NO_CENTRE = np.array([0.5, 0.5])

# Argument of each operation at levels 0, 5, 10, 15, 20: the published range (… at 10), extrapolated.
ARGUMENTS: dict[str, list[float]] = {
    "AutoContrast": [0, 0, 0, 0, 0],
    "Equalize": [0, 0, 0, 0, 0],
    "Invert": [0, 0, 0, 0, 0],
    "Rotate": [0, 15, 30, 45, 60],
    "Posterize": [0, 2, 4, 6, 8],
    "Solarize": [0, 128, 256, 384, 512],
    "Color": [0.1, 1.0, 1.9, 2.8, 3.7],
    "Contrast": [0.1, 1.0, 1.9, 2.8, 3.7],
    "Brightness": [0.1, 1.0, 1.9, 2.8, 3.7],
    "Sharpness": [0.1, 1.0, 1.9, 2.8, 3.7],
    "ShearX": [0, 0.15, 0.3, 0.45, 0.6],
    "ShearY": [0, 0.15, 0.3, 0.45, 0.6],
    "TranslateX": [0, 50, 100, 150, 200],
    "TranslateY": [0, 50, 100, 150, 200],
    "Cutout": [0, 20, 40, 60, 80],
    "SolarizeAdd": [0, 55, 110, 165, 220],
}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth with some noise, not using the whole range."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = np.stack([40 + x, 200 - 2 * y, 60 + (x + y)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    return np.clip(smooth + noise, 5, 250).astype(np.uint8)


def test_the_list_is_the_published_one() -> None:
    assert list(OPERATIONS) == list(ARGUMENTS)
    assert {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"} == SIGNED


@pytest.mark.parametrize("name", ARGUMENTS)
def test_levels_become_these_arguments(name: str) -> None:
    assert [OPERATIONS[name].argument(level) for level in LEVELS] == pytest.approx(ARGUMENTS[name])


def test_nothing_is_written_into_the_input(image: np.ndarray) -> None:
    frozen = image.copy()
    frozen.flags.writeable = False
    for operation in OPERATIONS.values():
        operation.apply(frozen, operation.argument(10), NO_CENTRE)
    assert np.array_equal(frozen, image)


def test_operations_signs_and_centres_are_uniform() -> None:
    """Of 4,096 images, each operation is met by a sixteenth; an image's first number chooses it."""
    policy = BigVisionRandAugment(1, 2)
    numbers = seeds.uniform(7, "test", np.arange(4096)[:, None], np.arange(policy.num_numbers))
    chosen = np.bincount((numbers[:, 0] * len(OPERATIONS)).astype(int), minlength=16)
    assert np.abs(chosen - 256).max() < 5 * math.sqrt(256)
    ramp = np.repeat(np.arange(WIDTH, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(HEIGHT, axis=0)
    names = list(OPERATIONS)
    for name, row, column in (("ShearX", 30, 40), ("TranslateX", 30, 40)):
        which = (names.index(name) + 0.5) / 16
        plus = policy(ramp, np.array([which, 0.49, 0.5, 0.5]))
        minus = policy(ramp, np.array([which, 0.5, 0.5, 0.5]))
        assert not np.array_equal(plus[row, column], minus[row, column])
    corner = BigVisionRandAugment(1, 10)(ramp, np.array([(names.index("Cutout") + 0.5) / 16, 0, 0.0, 0.999]))
    assert (corner[0, -1] == 128).all() and (corner[-1, 0] == ramp[-1, 0]).all()


def test_layers_act_one_after_the_other_and_pickle(image: np.ndarray) -> None:
    two = pickle.loads(pickle.dumps(BigVisionRandAugment(2, 15)))
    numbers = np.arange(1, 9) / 9
    once = BigVisionRandAugment(1, 15)
    expected = once(once(image, numbers[:NUMBERS_PER_LAYER]), numbers[NUMBERS_PER_LAYER:])
    assert np.array_equal(two(image, numbers), expected)
    assert not np.array_equal(expected, image)
