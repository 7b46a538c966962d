"""The FLOPs that a run reports of each step are those that ``--check`` counts for images and patches of that size."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.assembly.record import work_of
from pretrain.config.schema.experiment import Experiment
from pretrain.sharding.work import image_flops
from tests.distributed.training import experiment

MASKED = {"pos_embed": "sincos2d_mae", "patch_drop": 0.75, "decoder": {"embed_dim": 16, "depth": 2, "num_heads": 2}}
MAE = {"model": {"variant": "mu/2", "img_size": 8, "depth": 2, **MASKED}, "objective": {"name": "mae"}}
RESOLUTION = {"data__resolution": [[0, 4], ["20 %", [6, 8]]]}


def native(length: int | list[int]) -> dict[str, Any]:
    crop, resize = {"crop": "native", "max_tokens": length}, {"resize": "native", "max_tokens": 32}
    return {"data__train_transform": crop, "data__eval_transform": resize}


def sized(size: int, patch: int = 2, **more: Any) -> dict[str, Any]:
    return {"model__img_size": size, "model__variant": f"mu/{patch}", **more}


CHANGING: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "one size": ({}, [{}]),
    "resolution": (RESOLUTION, [sized(4), sized(6), sized(8)]),
    "resolution, dropped patches": (
        {**RESOLUTION, "model__patch_drop": 0.25},
        [sized(size, model__patch_drop=0.25) for size in (4, 6, 8)],
    ),
    "patches": ({"model__patch_sizes": [1, 2, 4]}, [sized(8, patch) for patch in (1, 2, 4)]),
    "lengths": (native([4, 16, 8]), [native(length) for length in (4, 16, 8)]),
    "one length": (native(16), [native(16)]),
    "masked autoencoder": (MAE, [MAE]),
}


def of_steps(config: Experiment) -> list[float]:
    work = work_of(config, world=2)
    sizes = [config.metrics_of(config.image_sizes.at(step)) for step in range(config.num_steps)]
    found = [work.flops_of(each) for each in sizes]
    return [config.global_batch_size * flops for flops in found if flops is not None]


@pytest.mark.parametrize("case", CHANGING)
def test_flops_of_steps_are_those_of_check(case: str) -> None:
    changes, alone = CHANGING[case]
    config = experiment(**changes)
    steps = of_steps(config)
    assert len(steps) == config.num_steps == 40
    assert sum(steps) == pytest.approx(image_flops(config) * config.num_steps * config.global_batch_size, rel=1e-12)
    wanted = {round(config.global_batch_size * image_flops(experiment(**each))) for each in alone}
    assert {round(step) for step in steps} == wanted and len(wanted) == len(alone)
