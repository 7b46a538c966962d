"""The size of the training images at each step: read from the config, counted, and refused where it cannot work."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from scipy.stats import chisquare

from pretrain.config.duration import Duration, Moment
from pretrain.config.image_sizes import Tiling
from pretrain.sharding.step import step_of
from pretrain.sharding.work import image_flops
from tests.distributed.training import experiment

DRAWN = [[0, 4], ["25 %", [4, 6, 8]], ["35 steps", 8]]


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        (0, 0.0, "0 %"),
        ("0", 0.0, "0 %"),
        ("40 %", 40.0, "40 %"),
        ("2.5%", 2.5, "2.5 %"),
        ("30 epochs", Duration(30, "epochs"), "30 epochs"),
    ],
)
def test_a_moment_is_read_and_written(text: object, value: object, written: str) -> None:
    assert Moment.parse(text).value == value
    assert str(Moment.parse(text)) == written
    assert Moment.parse(written) == Moment.parse(text)


@pytest.mark.parametrize("text", ["40", 40, "101 %", "-1 %", "%", "late", None, "1e400 %"])
def test_a_moment_needs_a_unit_and_is_within_the_run(text: object) -> None:
    with pytest.raises(ValueError, match=r"write 0, a share from 0 to 100"):
        Moment.parse(text)


def test_stages_begin_at_shares_of_the_run_and_after_durations() -> None:
    sizes = experiment(data__resolution=[[0, 4], ["40 %", 6], ["250 samples", 8]], duration="50 steps").image_sizes
    expected = [4] * 20 + [6] * 11 + [8] * 19  # 250 samples are 31.25 steps of 8
    assert [sizes.at(step) for step in range(50)] == [Tiling((side, side)) for side in expected]
    assert sizes.at(1000).size == (8, 8), "after the end, as a run that was made longer"
    assert sizes.largest == (8, 8) and sizes.all == tuple(Tiling((side, side)) for side in (4, 6, 8))


@pytest.mark.parametrize("patches", [[], [1, 2]])
def test_counts_are_those_of_all_steps(patches: list[int]) -> None:
    sizes = experiment(data__resolution=DRAWN, model__patch_sizes=patches).image_sizes
    for num_steps in (1, 17, 36, 40):
        found = {size: count for size, count in sizes.counts(num_steps).items() if count}
        assert found == Counter(sizes.at(step) for step in range(num_steps))


def test_drawn_sizes_are_equally_frequent_and_those_of_the_seed() -> None:
    settings: dict[str, Any] = {"data__resolution": [[0, [4, 6, 8]]], "duration": "3000 steps"}
    sizes, other = experiment(**settings).image_sizes, experiment(**settings, seed=4).image_sizes
    assert chisquare(list(sizes.counts(3000).values())).pvalue > 1e-3
    assert [sizes.at(step) for step in range(50)] != [other.at(step) for step in range(50)]


def test_patches_are_drawn_apart_from_sizes() -> None:
    sizes = experiment(data__resolution=[[0, [4, 8]]], model__patch_sizes=[1, 2], duration="4000 steps").image_sizes
    counts = sizes.counts(4000)
    assert len(counts) == 4 and chisquare(list(counts.values())).pvalue > 1e-3
    assert sizes.heaviest == Tiling((8, 8), 1)


LENGTHS: dict[str, Any] = {
    "data__train_transform": {"crop": "native", "max_tokens": [16, 64, 32]},
    "data__eval_transform": {"resize": "native", "max_tokens": 32},
}


def test_flops_and_memory_are_those_of_the_drawn_lengths() -> None:
    drawn = experiment(**LENGTHS, duration="3000 steps")
    each = {
        length: experiment(**LENGTHS | {"data__train_transform": {"crop": "native", "max_tokens": length}})
        for length in (16, 32, 64)
    }
    counts = {tiling.size[1] // tiling.size[0]: count for tiling, count in drawn.image_sizes.counts(3000).items()}
    assert chisquare(list(counts.values())).pvalue > 1e-3
    mean = sum(image_flops(each[length]) * count for length, count in counts.items()) / 3000
    assert image_flops(drawn) == pytest.approx(mean, rel=1e-12) and mean != image_flops(each[32])
    assert step_of(drawn, 1, 8).footprint == step_of(each[64], 1, 8).footprint


def test_without_the_key_every_image_has_the_size_of_the_model() -> None:
    sizes = experiment(model__img_size=[4, 8]).image_sizes
    assert {sizes.at(step) for step in range(40)} == {Tiling((4, 8))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__resolution": [["10 %", 4]]}, r"the first start is 10 %, so step 0 has no size; write \[0, …\]"),
        ({"data__resolution": [[0, 4], ["0.1 %", 8]]}, r"0.1 % is step 0, and the one before it is step 0"),
        ({"data__resolution": [[0, 4], ["60 steps", 8]]}, r"60 steps is step 60, but the run ends after 40 steps"),
        ({"data__resolution": [[0, [4, 4]]]}, r"\[4, 4\]; list each side once"),
        ({"data__resolution": [[0, []]]}, r"\[\]; list each side once"),
        ({"data__resolution": [[0, 4]], "model__img_size": [4, 8]}, r"model.img_size is \[4, 8\]; use a square one"),
        (
            {
                "data__resolution": [[0, 4]], "objective__name": "masked_patches", "model__mask_token": True,
                "model__representation_size": None,
            },
            r"objective.name: masked_patches needs images of one grid",
        ),
        ({"model__patch_sizes": [2, 2]}, r"patch_sizes: \[2, 2\]; list each side once"),
        ({"model__patch_sizes": [16], "model__variant": "R50+mu/16"}, r"R50\+mu/16 has a ResNet"),
        (
            {"data__resolution": [[0, 4]], "data__train_transform": {"crop": "resmall", "short_side": 16}},
            r"short_side: 16 is in pixels",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)
