"""Every way of running ten steps gives the same ten losses: stage, ranks, accumulation, checkpointing, backend."""

from __future__ import annotations

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.training import experiment, train_with
from tests.pool import Pool

ALL_SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


KEPT = {"cluster": {"backend": "fsdp2", "reshard_after_forward": False, "micro_batch_size": 4}}


def settings(stage: int, micro: int, **more: object) -> Experiment:
    sharded = {"cluster__deepspeed": ALL_SHARDED} if stage == 3 else {}
    return experiment(cluster__zero_stage=stage, cluster__micro_batch_size=micro, **sharded, **more)


def losses(pool: Pool, config: Experiment, kind: str = "deepspeed") -> list[float]:
    results = pool.run(train_with, config, kind, {"steps": 10})
    assert all(result["losses"] == results[0]["losses"] for result in results)
    return list(results[0]["losses"].values())


@pytest.fixture(scope="module")
def reference(pool2: Pool) -> list[float]:
    """Ten fp32 losses of two ranks with DeepSpeed stage 0: no sharding, one pass per step."""
    values = losses(pool2, settings(0, 4))
    assert values[9] < values[1] - 0.01, "the loss must move, or equality says nothing"
    return values


@pytest.fixture(scope="module")
def other_references() -> dict[str, list[float]]:
    """Ten losses of one rank by objective, each made when it is first wanted."""
    return {}


CASES = {
    "zero1": (1, 4, "deepspeed", {}),
    "zero2": (2, 4, "deepspeed", {}),
    "zero3": (3, 4, "deepspeed", {}),
    "accumulation": (0, 2, "deepspeed", {}),
    "accumulation zero2": (2, 1, "deepspeed", {}),
    "accumulation zero3": (3, 2, "deepspeed", {}),
    "accelerate": (0, 4, "accelerate", {}),
    "fsdp2": (0, 4, "fsdp2", {}),
    "fsdp2 accumulation": (0, 1, "fsdp2", {}),
    "fsdp2 activation checkpointing": (0, 2, "fsdp2", {"cluster__activation_checkpointing": "full"}),
    "fsdp2 selective": (0, 4, "fsdp2", {"cluster__activation_checkpointing": "selective"}),
    "fsdp2 kept after forward": (0, 4, "fsdp2", KEPT),
    "accelerate accumulation": (0, 2, "accelerate", {}),
    "activation checkpointing": (1, 4, "deepspeed", {"cluster__activation_checkpointing": "full"}),
    "activation checkpointing zero3": (3, 4, "deepspeed", {"cluster__activation_checkpointing": "full"}),
    "activation checkpointing accelerate": (0, 4, "accelerate", {"cluster__activation_checkpointing": "full"}),
}


SLOW = ("fsdp2 activation checkpointing", "fsdp2 selective")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.quick if case == "zero3" else pytest.mark.slow if case in SLOW else ())
        for case in CASES
    ],
)
def test_two_ranks(pool2: Pool, reference: list[float], case: str) -> None:
    stage, micro, kind, more = CASES[case]
    assert losses(pool2, settings(stage, micro, **more), kind) == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "micro", "kind"),
    [(0, 2, "deepspeed"), (2, 1, "deepspeed"), (3, 2, "deepspeed"), (0, 2, "accelerate"), (0, 2, "fsdp2")],
)
def test_four_ranks(pool4: Pool, reference: list[float], stage: int, micro: int, kind: str) -> None:
    assert losses(pool4, settings(stage, micro), kind) == pytest.approx(reference, rel=1e-5)


def test_one_rank_with_twice_the_passes(pool1: Pool, reference: list[float]) -> None:
    assert losses(pool1, settings(0, 4)) == pytest.approx(reference, rel=1e-5)
    assert losses(pool1, settings(1, 8)) == pytest.approx(reference, rel=1e-5)


OTHER_TARGETS: dict[str, dict[str, object]] = {
    "regression": {"objective__name": "regression", "objective__regression": "smooth_l1"},
    "segmentation": {
        "objective__name": "segmentation",
        "model__head": "dense",
        "model__representation_size": None,
        "data__eval_transform": {"resize": "squash"},
    },
}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_other_targets_than_labels(
    pool1: Pool, pool2: Pool, other_references: dict[str, list[float]], name: str, stage: int
) -> None:
    """Two ranks in two passes give the losses of one rank with the whole batch."""
    if name not in other_references:
        other_references[name] = losses(pool1, settings(0, 8, **OTHER_TARGETS[name]))
        assert other_references[name][9] < other_references[name][1]
    found = losses(pool2, settings(stage, 2, **OTHER_TARGETS[name]))
    assert found == pytest.approx(other_references[name], rel=1e-5)


NATIVE = {
    "data__train_transform": {"crop": "native", "max_tokens": 16},
    "data__eval_transform": {"resize": "native", "max_tokens": 16},
    "model__pool": "avg_norm",
}
LENGTHS = NATIVE | {"data__train_transform": {"crop": "native", "max_tokens": [16, 24, 20]}}
NATIVE_CASES: dict[str, tuple[int, str, dict[str, object]]] = {
    "zero0": (0, "deepspeed", {}),
    "zero1": (1, "deepspeed", {}),
    "zero2": (2, "deepspeed", {}),
    "zero3": (3, "deepspeed", {}),
    "accelerate": (0, "accelerate", {}),
    "fsdp2": (0, "fsdp2", {}),
    "compile": (0, "fsdp2", {"cluster__compile": True}),
    "selective": (0, "fsdp2", {"cluster__activation_checkpointing": "selective"}),
    "full": (3, "deepspeed", {"cluster__activation_checkpointing": "full"}),
}
LENGTH_CASES = {"zero1": (1, "deepspeed"), "zero3": (3, "deepspeed"), "fsdp2": (0, "fsdp2")}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "zero3" else pytest.mark.slow) for case in NATIVE_CASES]
)
def test_images_at_their_own_aspect_ratio(
    pool1: Pool, pool2: Pool, other_references: dict[str, list[float]], case: str
) -> None:
    """Two ranks in two passes give the losses of one rank with the complete batch."""
    if "native" not in other_references:
        other_references["native"] = losses(pool1, settings(0, 8, **NATIVE))
        assert other_references["native"][9] < other_references["native"][1]
    stage, kind, more = NATIVE_CASES[case]
    found = losses(pool2, settings(stage, 2, **NATIVE, **more), kind)
    assert found == pytest.approx(other_references["native"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", LENGTH_CASES)
def test_sequence_lengths_drawn_per_batch(
    pool1: Pool, pool2: Pool, other_references: dict[str, list[float]], case: str
) -> None:
    """Two ranks in two passes give the losses of one rank with the complete batch."""
    if "lengths" not in other_references:
        other_references["lengths"] = losses(pool1, settings(0, 8, **LENGTHS))
    stage, kind = LENGTH_CASES[case]
    assert losses(pool2, settings(stage, 2, **LENGTHS), kind) == pytest.approx(other_references["lengths"], rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "kind"), [(0, "deepspeed"), (1, "deepspeed"), (2, "deepspeed"), (3, "deepspeed"), (0, "fsdp2")]
)
def test_the_same_command_twice_is_bit_identical(pool2: Pool, stage: int, kind: str) -> None:
    assert losses(pool2, settings(stage, 2), kind) == losses(pool2, settings(stage, 2), kind)


LOW_PRECISION = [(0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (0, "autocast"), (2, "autocast")]


@pytest.mark.parametrize(
    ("stage", "precision", "kind"),
    [
        *((stage, precision, "deepspeed") for stage, precision in LOW_PRECISION),
        (0, "bf16", "fsdp2"),
        (0, "autocast", "fsdp2"),
    ],
)
def test_low_precision_stays_near(pool2: Pool, reference: list[float], stage: int, precision: str, kind: str) -> None:
    values = losses(pool2, settings(stage, 4, precision=precision), kind)
    assert values == pytest.approx(reference, rel=2e-2) and values != reference


def test_bf16_stages_agree(pool2: Pool) -> None:
    runs = [losses(pool2, settings(stage, 4, precision="bf16")) for stage in (0, 1, 2, 3)]
    runs.append(losses(pool2, settings(0, 4, precision="bf16"), "fsdp2"))
    for values in runs[1:]:
        assert values == pytest.approx(runs[0], rel=1e-3)


def test_replicated_bf16_weights_have_the_losses_of_one_rank(pool1: Pool, pool2: Pool, pool4: Pool) -> None:
    """The same micro-batches on 1, 2 and 4 ranks; fp32 sums, so that only the order of additions differs."""
    sums = {"precision": "bf16", "cluster__grad_accum_dtype": "fp32"}
    expected = losses(pool1, settings(0, 2, **sums))
    assert expected[9] < expected[1] - 0.01
    assert losses(pool2, settings(0, 2, **sums)) == pytest.approx(expected, rel=1e-3)
    assert losses(pool4, settings(0, 2, **sums), "accelerate") == pytest.approx(expected, rel=1e-3)


def test_clipping_acts_and_is_the_same_everywhere(pool2: Pool) -> None:
    free = losses(pool2, settings(0, 4, optim__clip_grad=None))
    clipping = {"optim__clip_grad": 0.1, "optim__eps": 1e-2}
    clipped = [losses(pool2, settings(stage, 4, **clipping)) for stage in (0, 1, 3)]
    clipped.append(losses(pool2, settings(0, 4, **clipping), "fsdp2"))
    assert clipped[0] != pytest.approx(free, rel=1e-5)
    for values in clipped[1:]:
        assert values == pytest.approx(clipped[0], rel=1e-5)
