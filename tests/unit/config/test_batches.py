"""Batches of constant tokens: their sizes, the samples before each step, and durations in them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.training import experiment

GROWING: dict[str, Any] = {
    "global_batch_size": 64, "batch_unit": 4, "duration": "7 epochs",
    "data__resolution": [[0, 4], ["20 %", [4, 6, 8]], ["3500 samples", [6, 8]], ["80 %", 8]],
}  # fmt: skip
PATCHES = {"global_batch_size": 64, "batch_unit": 4, "model__patch_sizes": [1, 2]}
LENGTHS: dict[str, Any] = {
    "global_batch_size": 64,
    "batch_unit": 8,
    "duration": "5 epochs",
    "data__train_transform": {"crop": "native", "max_tokens": [64, 16, 28]},
    "data__eval_transform": {"resize": "native", "max_tokens": 32},
}
CASES = {"growing": GROWING, "patches": PATCHES, "lengths": LENGTHS}


@pytest.mark.parametrize("case", CASES)
def test_samples_before_a_step_are_the_sum_of_the_batches_before_it(case: str) -> None:
    config = experiment(**CASES[case])
    batches, drawn = config.batches, 0
    for step in range(3 * config.num_steps):
        assert batches.before(step) == drawn and batches.step(drawn) == step
        size = batches.size(step)
        assert batches.exact_step(drawn + size / 4) == pytest.approx(step + 0.25)
        drawn += size


@pytest.mark.parametrize("case", CASES)
def test_a_step_has_as_many_units_as_fit_into_the_patches_of_the_largest(case: str) -> None:
    config = experiment(**CASES[case])
    patches = {tiling: config.at_tiling(tiling) for tiling in config.image_sizes.all}
    of_image = {
        tiling: one.trained_model.size[0] * one.trained_model.size[1] // one.model.patch**2
        for tiling, one in patches.items()
    }
    budget = 64 * max(of_image.values())
    for tiling, count in of_image.items():
        size = config.batches.of(tiling)
        assert size % config.batches.unit == 0 and size * count <= budget < (size + config.batches.unit) * count
    assert len({config.batches.size(step) for step in range(config.num_steps)}) > 1


def test_each_round_has_every_size_once_and_rounds_differ() -> None:
    sizes = experiment(**LENGTHS).image_sizes
    rounds = [tuple(sizes.at(step) for step in range(3 * number, 3 * number + 3)) for number in range(30)]
    assert {frozenset(one) for one in rounds} == {frozenset(sizes.all)} and len(set(rounds)) == 6
    for num_steps in (1, 7, 30):
        found = {size: count for size, count in sizes.counts(num_steps).items() if count}
        assert sum(found.values()) == num_steps
        assert all(list(map(sizes.at, range(num_steps))).count(size) == count for size, count in found.items())


def test_durations_and_starts_count_samples() -> None:
    config = experiment(**GROWING)
    samples = config.samples_until(config.num_steps)
    assert abs(samples - 7000) <= max(config.batches.parts) * 4 / 2
    for stage, start in zip(config.image_sizes.stages[1:], (1400, 3500, 5600), strict=True):
        assert abs(config.samples_until(stage.first) - start) <= max(config.batches.parts) * 4 / 2
    assert config.mean_batch_size == pytest.approx(samples / config.num_steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_unit": 4}, "needs images that change their size"),
        ({**GROWING, "batch_unit": 6}, "not an even divisor of global_batch_size .64.; possible: 2, 4, 8, 16, 32, 64"),
        ({**GROWING, "batch_unit": 128}, "not an even divisor"),
        ({**GROWING, "batch_unit": 1}, "not an even divisor"),
        ({**GROWING, "data__resolution": [[0, [7, 8]]], "batch_unit": 64}, "so large that every step has"),
        ({**GROWING, "data__mixing": {"mixup": 0.2, "per": "batch"}}, "data.mixing.per: batch"),
        ({**GROWING, "data__repeated_augmentation": 2}, "repeated_augmentation"),
        ({**GROWING, "optim__schedule__per_epoch": True, "optim__schedule__name": "cosine"}, "per_epoch"),
        ({**GROWING, "data__resolution": [[0, 4], ["8000 samples", 8]]}, "but the run ends after"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)
