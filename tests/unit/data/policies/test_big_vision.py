"""Each of the 16 operations at each level against its published formula, written out here in plain numpy."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from pretrain import seeds
from pretrain.data.policies.big_vision import NUMBERS_PER_LAYER, OPERATIONS, BigVisionRandAugment

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
SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth with some noise, not using the whole range."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = np.stack([40 + x, 200 - 2 * y, 60 + (x + y)], axis=-1)
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    return np.clip(smooth + noise, 5, 250).astype(np.uint8)


def test_the_list_is_the_published_one() -> None:
    assert list(OPERATIONS) == list(ARGUMENTS)
    assert {name for name, operation in OPERATIONS.items() if operation.signed} == SIGNED


@pytest.mark.parametrize("name", ARGUMENTS)
def test_levels_become_these_arguments(name: str) -> None:
    assert [OPERATIONS[name].argument(level) for level in LEVELS] == pytest.approx(ARGUMENTS[name])


def blend(degenerate: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    degenerate, image = degenerate.astype(np.float32), image.astype(np.float32)
    return np.clip(degenerate + np.float32(factor) * (image - degenerate), 0, 255).astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """TensorFlow's: weights on [0, 1], then times 255.5 and cut off."""
    weighted = image.astype(np.float64) / 255 @ [0.2989, 0.5870, 0.1140]
    return np.clip(weighted * 255.5, 0, 255).astype(np.uint8)[:, :, None]


def autocontrast(image: np.ndarray, argument: float) -> np.ndarray:
    low, high = (image.min((0, 1)).astype(float), image.max((0, 1)).astype(float))
    return np.clip((image - low) * 255 / (high - low), 0, 255).astype(np.uint8)


def equalize(image: np.ndarray, argument: float) -> np.ndarray:
    channels = []
    for channel in range(3):
        histogram = np.bincount(image[:, :, channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        table = np.concatenate([[0], (histogram.cumsum()[:-1] + step // 2) // step])
        channels.append(np.clip(table, 0, 255).astype(np.uint8)[image[:, :, channel]])
    return np.stack(channels, axis=-1)


def posterize(image: np.ndarray, bits: float) -> np.ndarray:
    shift = 8 - int(bits)
    return ((image.astype(int) >> shift) << shift).astype(np.uint8)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    smooth, wide = image.copy(), image.astype(float)
    total = sum(
        (5 if (dy, dx) == (1, 1) else 1) * wide[dy : dy + HEIGHT - 2, dx : dx + WIDTH - 2]
        for dy in range(3)
        for dx in range(3)
    )
    smooth[1:-1, 1:-1] = (np.asarray(total) / 13 + 1e-4).astype(np.uint8)  # whole results must not fall below
    return blend(smooth, image, factor)


def moved(image: np.ndarray, matrix: list[list[float]], nudge: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Nearest pixel to matrix · (x, y, 1), grey outside; ``nudge`` moves what lies half-way between two."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    (a, b, c), (d, e, f) = matrix
    c, f = c + nudge[0], f + nudge[1]
    column, row = np.floor(a * x + b * y + c + 0.5).astype(int), np.floor(d * x + e * y + f + 0.5).astype(int)
    valid = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    found = image[np.clip(row, 0, HEIGHT - 1), np.clip(column, 0, WIDTH - 1)]
    return np.where(valid[:, :, None], found, 128).astype(np.uint8)


def rotation(degrees: float) -> list[list[float]]:
    """About the centre of the image, output → input."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]]


def cutout(image: np.ndarray, reach: float) -> np.ndarray:
    row, column, reach = HEIGHT // 2, WIDTH // 2, int(reach)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    inside = (y >= row - reach) & (y < row + reach) & (x >= column - reach) & (x < column + reach)
    return np.where(inside[:, :, None], 128, image).astype(np.uint8)


GEOMETRY: dict[str, Callable[[float], list[list[float]]]] = {
    "Rotate": rotation,
    "ShearX": lambda by: [[1, by, 0], [0, 1, 0]],
    "ShearY": lambda by: [[1, 0, 0], [by, 1, 0]],
    "TranslateX": lambda by: [[1, 0, by], [0, 1, 0]],
    "TranslateY": lambda by: [[1, 0, 0], [0, 1, by]],
}
REFERENCES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": lambda image, argument: 255 - image,
    "Posterize": posterize,
    "Solarize": lambda image, threshold: np.where(image < threshold, image, 255 - image),
    "Color": lambda image, factor: blend(np.repeat(grey(image), 3, axis=2), image, factor),
    "Contrast": lambda image, factor: blend(np.full_like(image, int(grey(image).mean())), image, factor),
    "Brightness": lambda image, factor: blend(np.zeros_like(image), image, factor),
    "Sharpness": sharpness,
    "Cutout": cutout,
    "SolarizeAdd": lambda image, by: np.where(image < 128, np.clip(image.astype(int) + int(by), 0, 255), image),
}
# Levels of grey between two libraries' floats, times the factor that multiplies them.
TOLERANCE: dict[str, int] = dict.fromkeys(("AutoContrast", "Color", "Contrast", "Sharpness"), 1)
NUDGES = [(x, y) for x in (-2e-3, 0, 2e-3) for y in (-2e-3, 0, 2e-3)]  # OpenCV counts in 1/1024 of a pixel


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", REFERENCES)
def test_every_operation_on_colours_at_every_level(image: np.ndarray, name: str, level: int) -> None:
    argument = OPERATIONS[name].argument(level)
    made = OPERATIONS[name].apply(image, argument, NO_CENTRE)
    assert made.dtype == np.uint8 and made.shape == image.shape
    expected = REFERENCES[name](image, argument).astype(int)
    assert np.abs(made.astype(int) - expected).max() <= TOLERANCE.get(name, 0) * max(1.0, argument)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", GEOMETRY)
def test_every_operation_on_geometry_at_every_level(image: np.ndarray, name: str, level: int, sign: int) -> None:
    argument = sign * OPERATIONS[name].argument(level)
    made = OPERATIONS[name].apply(image, argument, NO_CENTRE)
    near = [(made == moved(image, GEOMETRY[name](argument), nudge)).all(axis=2) for nudge in NUDGES]
    assert np.logical_or.reduce(near).all()


def test_the_two_tables_hold_all_operations() -> None:
    assert sorted([*REFERENCES, *GEOMETRY]) == sorted(OPERATIONS) and set(GEOMETRY) == SIGNED


def test_flat_images_pass_through_what_needs_a_range() -> None:
    flat = np.full((HEIGHT, WIDTH, 3), 77, dtype=np.uint8)
    for name in ("AutoContrast", "Equalize", "Sharpness", "Contrast", "Color"):
        assert np.array_equal(OPERATIONS[name].apply(flat, 1.0, NO_CENTRE), flat), name


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
