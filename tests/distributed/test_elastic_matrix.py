"""Runs that move to another sharding and another number of ranks, in every precision and with every optimiser.

All combinations would be thousands. The cases here are a covering array: every pair of values of two axes that is
supported occurs in at least one case.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema.experiment import Experiment
from pretrain.sharding.choice import SHARDINGS, refusals
from tests.distributed.test_elastic import pools  # noqa: F401  (a fixture)
from tests.distributed.test_equality_laws import settings
from tests.distributed.training import BATCH, train_with
from tests.pool import Pool

SAVE_AT, STEPS = 3, 8
SHARDED = {one.name: one for possible in SHARDINGS.values() for one in possible}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, bf16 moment": {"optim__momentum_dtype": "bf16"},
    "sgd": {"optim": {"name": "sgd", "lr": 0.05, "weight_decay": 0.1, "clip_grad": 1.0}},
    "lamb": {"optim__name": "lamb"},
    "adafactor": {"optim": {"name": "adafactor", "lr": 1e-3, "clip_grad": 1.0}},
    "shampoo": {
        "optim": {"name": "shampoo", "lr": 1e-3, "clip_grad": 1.0, "epsilon": 1e-6, "precondition_frequency": 2}
    },
    "soap": {"optim": {"name": "soap", "lr": 0.01, "clip_grad": 1.0, "eps": 0.3, "precondition_frequency": 2}},
    "schedule_free": {
        "optim": {"name": "schedule_free", "lr": 3e-3, "schedule": {"name": "constant", "warmup": "4 steps"}}
    },
}
AXES: dict[str, tuple[Any, ...]] = {
    "from": tuple(SHARDED),
    "to": tuple(SHARDED),
    "ranks": (1, 2, 4),
    "then": (1, 2, 4),
    "precision": ("fp32", "bf16", "autocast"),
    "optimizer": tuple(OPTIMIZERS),
}
# fp32: the order of additions. Otherwise each layout rounds gradients at other places.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3, "autocast": 5e-3}
Case = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def config_of(case: Case, sharding: str, ranks: int) -> Experiment:
    """The experiment of one of the two layouts of a case, in two passes where the ranks have enough images."""
    stage = SHARDED[sharding].stage if SHARDED[sharding].backend == "deepspeed" else 0
    micro = max(1, BATCH // ranks // 2)
    return settings(stage, micro, precision=case["precision"], **OPTIMIZERS[case["optimizer"]])


@functools.cache
def _trains(sharding: str, precision: str, optimizer: str) -> bool:
    config = config_of({"precision": precision, "optimizer": optimizer}, sharding, 1)
    return not refusals(config, SHARDED[sharding])


def is_supported(case: Case) -> bool:
    """Whether both layouts of a case can train."""
    return all(_trains(case[end], case["precision"], case["optimizer"]) for end in ("from", "to"))


def pairs_of(case: Case) -> set[Pair]:
    return set(combinations(case.items(), 2))


def covering(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Case]:
    """Supported cases, each the one with the most pairs of values that no case before it has."""
    possible = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    left = {number: pairs_of(case) for number, case in enumerate(possible) if is_supported(case)}
    while any(left.values()):
        best = max(left, key=lambda number: len(left[number]))
        new = left.pop(best)
        yield possible[best]
        left = {number: pairs - new for number, pairs in left.items()}


CASES = list(covering(AXES))
FAST = [
    {"from": "DDP", "to": "FSDP2", "ranks": 2, "then": 4, "precision": "bf16", "optimizer": "adamw"},
    {"from": "FSDP2", "to": "ZeRO-3", "ranks": 2, "then": 1, "precision": "fp32", "optimizer": "adamw, bf16 moment"},
]


def in_words(case: Case) -> str:
    return f"{case['from']}x{case['ranks']}→{case['to']}x{case['then']}-{case['precision']}-{case['optimizer']}"


def losses(pools: dict[int, Pool], case: Case, end: str, ranks: str, **options: Any) -> dict[int, float]:  # noqa: F811
    config = config_of(case, case[end], case[ranks])
    return pools[case[ranks]].run(train_with, config, SHARDED[case[end]].backend, options)[0]["losses"]


@pytest.mark.parametrize(
    "case",
    [*(pytest.param(case, id=in_words(case)) for case in FAST)]
    + [pytest.param(case, id=f"{in_words(case)} (matrix)", marks=pytest.mark.slow) for case in CASES],
)
def test_a_moved_run_has_the_losses_of_an_uninterrupted_one(
    pools: dict[int, Pool],  # noqa: F811
    tmp_path: Path,
    case: Case,
) -> None:
    straight = losses(pools, case, "from", "ranks", steps=STEPS, save_at=SAVE_AT, folder=str(tmp_path))
    moved = losses(pools, case, "to", "then", steps=STEPS, folder=str(tmp_path), resume=True)
    assert list(moved) == list(range(SAVE_AT, STEPS))
    assert straight[STEPS - 1] != straight[SAVE_AT]
    for step, loss in moved.items():
        assert loss == pytest.approx(straight[step], rel=TOLERANCE[case["precision"]]), step


def test_every_supported_pair_is_in_a_case() -> None:
    covered = set().union(*map(pairs_of, CASES))
    everything = {
        pair
        for values in product(*AXES.values())
        if is_supported(case := dict(zip(AXES, values, strict=True)))
        for pair in pairs_of(case)
    }
    assert covered == everything and len(CASES) < 60
    for first, second in product(SHARDED, repeat=2):
        assert (("from", first), ("to", second)) in covered
