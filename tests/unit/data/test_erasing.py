"""Random erasing: where, how large and with what, against timm's ranges; and no other inputs than the slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pretrain.config.schema.transforms import RandomErasingConfig
from pretrain.data.on_device import RandomErasing, normal

HEIGHT, WIDTH = 40, 50
SLOTS = np.arange(1000, 3000)


def erasing(seed: int = 1, **config: Any) -> RandomErasing:
    return RandomErasing(RandomErasingConfig(**config), seed)


def test_rectangles_have_the_sizes_that_are_asked_for() -> None:
    places = erasing(prob=1.0).rectangles(SLOTS, HEIGHT, WIDTH)
    assert abs(len(places) - len(SLOTS)) < 5 and len({place.key for place in places}) == len(places)
    share = np.array([place.height * place.width for place in places]) / (HEIGHT * WIDTH)
    aspect = np.array([place.height / place.width for place in places])
    assert share.min() > 0.01 and share.max() < 1 / 3 + 0.02
    assert aspect.min() > 0.2 and aspect.max() < 5
    small = share < 0.2  # large ones with an extreme aspect do not fit and are drawn again
    assert stats.kstest(share[small], stats.uniform(0.02, 0.18).cdf).statistic < 0.05
    assert stats.kstest(np.log(aspect[small]), stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).statistic < 0.06
    assert all(0 <= place.top <= HEIGHT - place.height and 0 <= place.left <= WIDTH - place.width for place in places)
    top = np.array([place.top / (HEIGHT - place.height) for place in places])
    assert abs(top.mean() - 0.5) < 0.03 and top.min() == 0 and top.max() == 1


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_images_are_erased_as_often_as_asked(prob: float) -> None:
    rows = {place.image for place in erasing(prob=prob).rectangles(SLOTS, HEIGHT, WIDTH)}
    assert abs(len(rows) / len(SLOTS) - prob) < 0.03


def test_several_rectangles_share_the_area() -> None:
    places = erasing(prob=1.0, count=3).rectangles(SLOTS, HEIGHT, WIDTH)
    counts = np.bincount(np.bincount([place.image for place in places]))
    assert (np.abs(counts[1:4] / len(SLOTS) - 1 / 3) < 0.05).all() and len(counts) == 4
    areas = np.bincount([p.image for p in places], [p.height * p.width for p in places])
    assert areas.max() < (1 / 3 + 0.05) * HEIGHT * WIDTH


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_what_is_filled_in(mode: Any) -> None:
    images = torch.full((8, 3, HEIGHT, WIDTH), 9.0)
    made = erasing(prob=1.0, mode=mode)
    erased = made(images, SLOTS[:8])
    for place in made.rectangles(SLOTS[:8], HEIGHT, WIDTH):
        part = erased[place.image, :, place.top : place.top + place.height, place.left : place.left + place.width]
        values = part.unique().numel()
        assert {"pixel": values > 0.99 * part.numel(), "rand": values == 3, "const": values == 1}[mode]
        assert (mode == "const") == bool((part == 0).all())
        assert (erased[place.image] == 9).sum() == 3 * HEIGHT * WIDTH - part.numel()


def test_noise_is_standard_normal_and_different_for_each_key() -> None:
    values = normal(12345, 100_000, torch.device("cpu"))
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    other = normal(12346, 100_000, torch.device("cpu"))
    for shift in (0, 1, 2):
        assert abs(np.corrcoef(values[: 100_000 - shift], other[shift:])[0, 1]) < 0.015
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    assert torch.equal(normal(12345, 50, torch.device("cpu")), values[:50])


def test_micro_batches_make_no_difference() -> None:
    images = torch.randn(16, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    made = erasing(prob=0.5, count=2)
    whole = made(images.clone(), SLOTS[:16])
    assert not torch.equal(whole, images)
    parts = [made(images[first : first + 3].clone(), SLOTS[first : min(first + 3, 16)]) for first in range(0, 16, 3)]
    assert torch.equal(torch.cat(parts), whole)
