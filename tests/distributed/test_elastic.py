"""A checkpoint written by any layout is read by any other: ranks, ZeRO stage, backend, accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_equality_laws import NATIVE, OTHER_TARGETS, settings
from tests.distributed.training import BATCH, train_with
from tests.pool import Pool, RankFailureError

SAVE_AT, STEPS = 3, 24  # before step 20 as well as after it
SGD = {"optim": {"name": "sgd", "lr": 0.05, "weight_decay": 0.1, "clip_grad": 1.0}}
Layout = tuple[int, int, str]  # stage, ranks, backend

CHAINS: list[tuple[Layout, Layout, Layout]] = [
    ((1, 4, "deepspeed"), (3, 2, "deepspeed"), (2, 4, "deepspeed")),
    ((3, 2, "deepspeed"), (0, 4, "deepspeed"), (1, 1, "deepspeed")),
    ((0, 2, "accelerate"), (2, 2, "deepspeed"), (0, 1, "accelerate")),
    ((2, 4, "deepspeed"), (0, 2, "fsdp2"), (3, 1, "deepspeed")),
    ((0, 4, "fsdp2"), (0, 1, "fsdp2"), (0, 2, "accelerate")),
]


@pytest.fixture
def pools(pool1: Pool, pool2: Pool, pool4: Pool) -> dict[int, Pool]:
    return {1: pool1, 2: pool2, 4: pool4}


def layout_settings(layout: Layout, **more: object) -> Experiment:
    return settings(layout[0], max(1, BATCH // layout[1] // 2), **more)


def run(pools: dict[int, Pool], layout: Layout, options: dict, **more: object) -> dict:
    return pools[layout[1]].run(train_with, layout_settings(layout, **more), layout[2], options)[0]


MARKS = {(False, "adamw"): pytest.mark.quick, (False, "sgd"): (), (True, "adamw"): (), (True, "sgd"): pytest.mark.slow}
CASES = [
    pytest.param(
        chain,
        optimizer,
        id=f"{'→'.join(f'zero{stage}x{ranks}{kind[0]}' for stage, ranks, kind in chain)}-{optimizer}",
        marks=MARKS["fsdp2" in str(chain), optimizer],
    )
    for chain in CHAINS
    for optimizer in ("adamw", "sgd")
]


@pytest.mark.parametrize(("chain", "optimizer"), CASES)
def test_three_layouts_in_a_row(pools: dict[int, Pool], tmp_path: Path, chain: tuple, optimizer: str) -> None:
    more = SGD if optimizer == "sgd" else {}
    first, second, third = chain
    straight = run(pools, first, {"steps": STEPS, "save_at": SAVE_AT, "folder": str(tmp_path)}, **more)
    second_run = run(pools, second, {"steps": 6, "save_at": 6, "folder": str(tmp_path), "resume": True}, **more)
    third_run = run(pools, third, {"steps": STEPS, "folder": str(tmp_path), "resume": True}, **more)
    resumed = second_run["losses"] | third_run["losses"]
    assert list(resumed) == list(range(SAVE_AT, STEPS))
    for step, loss in resumed.items():
        assert loss == pytest.approx(straight["losses"][step], rel=1e-5), step


@pytest.mark.parametrize("name", [*OTHER_TARGETS, pytest.param("native", marks=pytest.mark.slow)])
def test_other_targets_and_images(pools: dict[int, Pool], tmp_path: Path, name: str) -> None:
    more = (OTHER_TARGETS | {"native": NATIVE})[name]
    straight = run(pools, (1, 2, "deepspeed"), {"steps": 6, "save_at": SAVE_AT, "folder": str(tmp_path)}, **more)
    resumed = run(pools, (3, 4, "deepspeed"), {"steps": 6, "folder": str(tmp_path), "resume": True}, **more)
    for step, loss in resumed["losses"].items():
        assert loss == pytest.approx(straight["losses"][step], rel=1e-5), step


@pytest.mark.parametrize(
    "layout",
    [
        (0, 2, "deepspeed"),
        (1, 2, "deepspeed"),
        pytest.param((2, 2, "deepspeed"), marks=pytest.mark.quick),
        (3, 2, "deepspeed"),
        (0, 2, "accelerate"),
        (0, 2, "fsdp2"),
    ],
)
def test_the_same_layout_goes_on_bit_identically(pools: dict[int, Pool], tmp_path: Path, layout: Layout) -> None:
    straight = run(pools, layout, {"steps": 8, "save_at": SAVE_AT, "folder": str(tmp_path)})
    resumed = run(pools, layout, {"steps": 8, "folder": str(tmp_path), "resume": True})
    assert resumed["losses"] == {step: straight["losses"][step] for step in range(SAVE_AT, 8)}
    assert resumed["norms"] == {step: straight["norms"][step] for step in range(SAVE_AT, 8)}
    assert resumed["weights"] == straight["weights"]


@pytest.mark.parametrize("layout", [(0, 2, "accelerate"), (1, 2, "deepspeed"), (3, 2, "deepspeed"), (0, 2, "fsdp2")])
def test_bf16_goes_on_from_the_fp32_master_weights(pools: dict[int, Pool], tmp_path: Path, layout: Layout) -> None:
    straight = run(pools, layout, {"steps": 8, "save_at": SAVE_AT, "folder": str(tmp_path)}, precision="bf16")
    resumed = run(pools, layout, {"steps": 8, "folder": str(tmp_path), "resume": True}, precision="bf16")
    assert resumed["losses"] == {step: straight["losses"][step] for step in range(SAVE_AT, 8)}
    other = run(pools, (2, 4, "deepspeed"), {"steps": 8, "folder": str(tmp_path), "resume": True}, precision="bf16")
    assert list(other["losses"].values()) == pytest.approx(list(resumed["losses"].values()), rel=2e-3)


def test_small_parameters_that_stay_whole_at_zero3(pools: dict[int, Pool], tmp_path: Path) -> None:
    """With DeepSpeed's default threshold nothing of this model is sharded; the load must refresh those copies too."""
    straight = run(pools, (1, 2, "deepspeed"), {"steps": 6, "save_at": SAVE_AT, "folder": str(tmp_path)})
    whole = settings(3, 4).model_copy(update={"cluster": settings(1, 4).cluster.model_copy(update={"zero_stage": 3})})
    resumed = pools[2].run(train_with, whole, "deepspeed", {"steps": 6, "folder": str(tmp_path), "resume": True})[0]
    assert list(resumed["losses"].values()) == pytest.approx(
        [straight["losses"][s] for s in range(SAVE_AT, 6)], rel=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__depth": 3}, r"has no master of blocks\.2\.|could not be loaded|has no master"),
        ({"model__mlp_dim": 64}, r"mlp\.fc1\.weight has shape \(128, 32\), the model has \(64, 32\)"),
        (SGD, "has no momentum_buffer of"),
    ],
)
def test_another_model_or_optimiser_is_refused(
    pools: dict[int, Pool], tmp_path: Path, change: dict, message: str
) -> None:
    run(pools, (1, 2, "deepspeed"), {"steps": 2, "save_at": 2, "folder": str(tmp_path)})
    with pytest.raises(RankFailureError, match="CheckpointError") as caught:
        run(pools, (1, 2, "deepspeed"), {"steps": 4, "folder": str(tmp_path), "resume": True}, **change)
    assert __import__("re").search(message, str(caught.value))
