"""The masked autoencoder trains alike at every sharding and layout, is resumed on another one, and is fine-tuned."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_backbones import ALL_SHARDED, SAVE_AT, STEPS, losses
from tests.distributed.training import experiment
from tests.pool import Pool

MAE = {
    "variant": "mu/2", "img_size": 8, "depth": 2, "pos_embed": "sincos2d_mae", "patch_drop": 0.75,
    "decoder": {"embed_dim": 16, "depth": 2, "num_heads": 2},
}  # fmt: skip


def masked(stage: int, micro: int, **more: object) -> Experiment:
    sharded = {"cluster__deepspeed": ALL_SHARDED} if stage == 3 else {}
    sizes = {"cluster__zero_stage": stage, "cluster__micro_batch_size": micro}
    return experiment(model=MAE, objective={"name": "mae"}, **sizes, **sharded, **more)


@pytest.fixture(scope="module")
def reference(pool2: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """The losses of two ranks without sharding, and the folder with their checkpoint."""
    folder = tmp_path_factory.mktemp("mae")
    values = losses(pool2, masked(0, 4), folder=str(folder), save_at=SAVE_AT)
    assert values[STEPS - 1] < values[0] - 0.01, "the loss must move, or equality says nothing"
    return folder, values


def test_a_resume_on_another_layout_and_a_fine_tuning(
    pool1: Pool, pool2: Pool, reference: tuple[Path, dict[int, float]]
) -> None:
    folder, values = reference
    resumed = losses(pool1, masked(3, 4), folder=str(folder), resume=True)
    assert list(resumed.values()) == pytest.approx([values[step] for step in resumed], rel=2e-5)
    weights = str(folder / "checkpoints" / f"step-{SAVE_AT:08d}" / "weights.safetensors")
    tuned = {"variant": "mu/2", "img_size": 12, "depth": 2, "pool": "avg_norm"}
    fine = losses(pool2, experiment(model=tuned), weights=weights)
    assert fine[0] == pytest.approx(1.6094379, rel=1e-5) and fine[STEPS - 1] < fine[0], "ln 5: a new head of zeros"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "micro", "kind", "more"),
    [
        (1, 2, "deepspeed", {}),
        (2, 1, "deepspeed", {}),
        (3, 2, "deepspeed", {}),
        (3, 4, "deepspeed", {"cluster__activation_checkpointing": "full"}),
        (1, 4, "deepspeed", {"cluster__activation_checkpointing": "selective"}),
        (1, 4, "deepspeed", {"cluster__activation_checkpointing": "every_2"}),
        (3, 4, "deepspeed", {"cluster__compile": True}),
        (0, 2, "accelerate", {}),
        (0, 2, "fsdp2", {}),
        (0, 4, "fsdp2", {"cluster__compile": True, "cluster__activation_checkpointing": "selective"}),
    ],
)
def test_every_layout_gives_the_same_losses(
    pool2: Pool, reference: tuple[Path, dict[int, float]], stage: int, micro: int, kind: str, more: dict
) -> None:
    found = losses(pool2, masked(stage, micro, **more), kind)
    assert list(found.values()) == pytest.approx(list(reference[1].values()), rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kind", "precision"),
    [(1, "deepspeed", "bf16"), (0, "deepspeed", "autocast"), (0, "fsdp2", "bf16")],
)
def test_low_precision_stays_near(
    pool2: Pool, reference: tuple[Path, dict[int, float]], stage: int, kind: str, precision: str
) -> None:
    found = losses(pool2, masked(stage, 4, precision=precision), kind)
    assert list(found.values()) == pytest.approx(list(reference[1].values()), rel=5e-2) and found != reference[1]
