"""timm's RandAugment and colour policies: our pixels are those of timm and torchvision for the same draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_augment
from torchvision.transforms import functional as tv

from pretrain import seeds
from pretrain.config.schema.transforms import InceptionConfig, parse_timm_policy
from pretrain.data.images.augment import TrainTransform
from pretrain.data.images.policies import timm as ours
from pretrain.data.images.policies.registry import ColorJitter, ThreeAugment

SIZE = 48
MAGNITUDES = [0.0, 0.3, 5.0, 9.0, 9.6, 10.0]
FILTERS = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]
FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIZE + 8, SIZE), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", sorted(set(ours.PLAIN) | set(ours.INCREASING)))
def test_every_operation_at_every_magnitude(
    pixels: np.ndarray, name: str, magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0 if sign > 0 else 1.0)  # timm negates above 0.5
    for filter in FILTERS:
        hparams = {"img_mean": FILL, "interpolation": filter, "translate_const": 20}
        theirs = timm_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)  # type: ignore[arg-type]
        operation = ours.OPERATIONS[name]
        argument = operation.argument(magnitude, sign)
        made = operation.apply(Image.fromarray(pixels), argument, ours.Canvas(FILL, filter))
        if name.startswith("Posterize") and argument == 0:
            assert not np.asarray(made).any()  # black; timm's call fails in Pillow 13, which refuses 0 bits
            continue
        assert np.array_equal(np.asarray(made), np.asarray(theirs(Image.fromarray(pixels))))


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.9", "rand", "rand-m15-mmax20-mstd101", "rand-inc0-m6-n1"]
)
def test_the_text_means_what_timm_reads(text: str) -> None:
    theirs = timm_augment.rand_augment_transform(text, {"img_mean": FILL})
    policy = parse_timm_policy(text)
    assert policy.num_layers == theirs.num_layers
    names = ours.INCREASING if policy.increasing else ours.PLAIN
    assert [op.name for op in theirs.ops] == list(names)
    for op in theirs.ops:
        assert (op.prob, op.magnitude) == (policy.prob, policy.magnitude)
        assert (op.magnitude_max or 10) == policy.magnitude_max
        assert min(op.magnitude_std, 101) == policy.magnitude_std


def test_magnitudes_are_normal_and_clamped() -> None:
    policy = ours.TimmRandAugment(parse_timm_policy("rand-m9-mstd0.5-inc1"), (0.5, 0.5, 0.5), FILTERS[0])
    drawn = np.array([policy.magnitude(u) for u in seeds.uniform(0, "x", np.arange(4000))])
    assert drawn.max() == 10
    assert abs((drawn == 10).mean() - stats.norm.sf(2)) < 0.01
    inside = drawn[drawn < 10]
    truncated = stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert stats.kstest(inside, truncated.cdf).pvalue > 0.01


def test_layers_are_applied_as_often_as_asked_and_operations_are_uniform(pixels: np.ndarray) -> None:
    policy = ours.TimmRandAugment(parse_timm_policy("rand-m9-mstd0.5-inc1"), (0.485, 0.456, 0.406), FILTERS[1])
    assert ours.fill_colour(policy.mean) == FILL
    numbers = seeds.uniform(3, "y", np.arange(400)[:, None], np.arange(policy.num_numbers))
    same = np.mean([np.array_equal(policy(pixels, row), pixels) for row in numbers])
    assert abs(same - 0.25) < 0.08  # both layers skipped, or an operation without effect
    skipped = numbers.copy()
    skipped[:, 1::4] = 0.5  # the least number at which nothing is done
    assert np.array_equal(policy(pixels, skipped[0]), pixels)


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
def test_jitter_is_torchvisions(pixels: np.ndarray, factor: float) -> None:
    number = (factor - 0.6) / 0.8
    jitter, image = ColorJitter(0.4), Image.fromarray(pixels)
    for order, functions in (
        ([0.1, 0.2, 0.3], (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)),
        ([0.3, 0.2, 0.1], (tv.adjust_saturation, tv.adjust_contrast, tv.adjust_brightness)),
        ([0.2, 0.3, 0.1], (tv.adjust_saturation, tv.adjust_brightness, tv.adjust_contrast)),
    ):
        expected: Any = image
        for function in functions:
            expected = function(expected, 0.6 + 0.8 * number)
        made = jitter(pixels, np.array([number, number, number, *order]))
        assert np.array_equal(made, np.asarray(expected))


@pytest.mark.parametrize("share", [-0.5, -0.3, -0.001, 0.0, 0.004, 0.1, 0.4999])
def test_the_hue_is_turned_as_torchvision_does(pixels: np.ndarray, share: float) -> None:
    jitter, number = ColorJitter(0.4, 0.5), share + 0.5
    for order, functions in (
        ([0.1, 0.2, 0.3, 0.0], (tv.adjust_hue, tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)),
        ([0.3, 0.2, 0.0, 0.1], (tv.adjust_saturation, tv.adjust_hue, tv.adjust_contrast, tv.adjust_brightness)),
    ):
        expected: Any = Image.fromarray(pixels)
        for function in functions:
            expected = function(expected, 0.5 * (2 * number - 1) if function is tv.adjust_hue else 0.9)
        numbers = np.array([(0.9 - 0.6) / 0.8] * 3 + [*order[:3], number, order[3]])
        assert np.array_equal(jitter(pixels, numbers), np.asarray(expected))
    alone = ColorJitter(0.0, 0.25)(pixels, np.array([0.5] * 3 + [0.1, 0.2, 0.3, number, 0.15]))
    image: Any = Image.fromarray(pixels)
    assert np.array_equal(alone, np.asarray(tv.adjust_hue(image, 0.25 * (2 * number - 1))))


def test_the_hue_has_its_range_and_leaves_the_other_numbers() -> None:
    """Uniform in ± h over images, and the three factors and their order are those of a jitter without a hue."""
    ids, epochs = np.arange(400), np.zeros(400, dtype=np.int64)
    configs = [InceptionConfig(color_jitter=0.3, color_jitter_hue=hue) for hue in (0.0, 0.1)]
    plain, turned = (TrainTransform(config, 32, 32, seed=5).numbers(epochs, ids) for config in configs)
    assert np.array_equal(turned[:, :-2], plain)
    assert stats.kstest(turned[:, -2], "uniform").pvalue > 0.01


def test_a_strong_jitter_stops_at_zero(pixels: np.ndarray) -> None:
    assert (ColorJitter(2.0)(pixels, np.array([0.0, 0.5, 0.5, 0, 0.1, 0.2])) == 0).all()


def test_three_augment_is_one_of_three(pixels: np.ndarray) -> None:
    from torchvision.transforms import Grayscale

    policy, image = ThreeAugment(), Image.fromarray(pixels)
    hparams = {"img_mean": FILL}
    solarized = timm_augment.AugmentOp("SolarizeIncreasing", prob=1.0, magnitude=5, hparams=hparams)(image)
    blurred = timm_augment.gaussian_blur(image, 0.1 + 1.9 * 0.5)
    for number, expected in ((0.1, Grayscale(3)(image)), (0.5, solarized), (0.9, blurred)):
        assert np.array_equal(policy(pixels, np.array([number, 0.5])), np.asarray(expected))
