"""Running statistics (BatchNorm): gathered by each rank, one for all where they are used, in every checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.engine.state import TrainState
from pretrain.models.interop import load_weights
from tests.distributed.training import BATCH, checkpointer, experiment, make, one_step, train_with
from tests.pool import Pool

RESNET = {
    "name": "timm/resnet18",
    "img_size": 32,
    "kwargs": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32]},
    "head_init": "normal",
}
ALL_SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
STEPS, SAVE_AT = 6, 3
KINDS = [
    ("deepspeed", 1),
    pytest.param("deepspeed", 0, marks=pytest.mark.slow),
    pytest.param("deepspeed", 3, marks=pytest.mark.slow),
    pytest.param("accelerate", 0, marks=pytest.mark.slow),
]


def settings(stage: int = 1, **more: Any) -> Experiment:
    sharded = {"cluster__deepspeed": ALL_SHARDED} if stage == 3 else {}
    return experiment(model=RESNET, cluster__zero_stage=stage, cluster__micro_batch_size=4, **sharded, **more)


def gather(config: Experiment, kind: str, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A rank's statistics after two steps: its own, and those after a save."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    backend, accumulation = make(config, kind)
    backend.train(True)
    for step in range(2):
        one_step(backend, config, accumulation, step)
    own = backend.statistics.read()
    checkpointer(backend, config, Path(folder)).save(TrainState().advance(batch_size=BATCH, applied=True))
    return own, backend.statistics.read()


def around_a_nan(config: Experiment, kind: str) -> list[dict[str, Tensor]]:
    """A rank's statistics before a step with a NaN in rank 0's images, and after it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    backend, accumulation = make(config, kind)
    backend.train(True)
    one_step(backend, config, accumulation, 0)
    before = backend.statistics.read()
    poison = torch.tensor(float("nan")) if torch.distributed.get_rank() == 0 else None
    _, update = one_step(backend, config, accumulation, 1, poison)
    assert not update.applied
    return [before, backend.statistics.read()]


@pytest.mark.parametrize(("kind", "stage"), KINDS)
def test_a_checkpoint_has_the_mean_over_the_ranks(pool2: Pool, tmp_path: Path, kind: str, stage: int) -> None:
    (first, saved), (second, also_saved) = pool2.run(gather, settings(stage), kind, str(tmp_path))
    in_file, _ = load_weights(tmp_path / "checkpoints" / "step-00000001" / "weights.safetensors")
    assert not torch.equal(first["bn1.running_mean"], second["bn1.running_mean"]), "each rank saw other images"
    for name, mine in first.items():
        expected = (mine + second[name]) / 2 if mine.is_floating_point() else mine
        torch.testing.assert_close(saved[name], expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(saved[name], also_saved[name]) and torch.equal(saved[name], in_file[name])
    assert int(saved["bn1.num_batches_tracked"]) == 2


@pytest.mark.parametrize(("kind", "stage"), KINDS)
def test_a_skipped_update_leaves_no_trace_in_them(pool2: Pool, kind: str, stage: int) -> None:
    for before, after in pool2.run(around_a_nan, settings(stage), kind):
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("kind", "stage"), KINDS)
def test_a_resume_goes_on_to_the_bit_and_on_fewer_ranks_to_rounding(
    pool1: Pool, pool2: Pool, tmp_path: Path, kind: str, stage: int
) -> None:
    """The probe of the checkpoint uses them: a load that forgot them is refused by its own verification."""
    options = {"steps": STEPS, "folder": str(tmp_path)}
    straight = pool2.run(train_with, settings(stage), kind, {**options, "save_at": SAVE_AT})[0]["losses"]
    resumed = pool2.run(train_with, settings(stage), kind, {**options, "resume": True})[0]["losses"]
    assert resumed == {step: straight[step] for step in range(SAVE_AT, STEPS)}
    # one rank takes one after the other the micro-batches that two ranks take together: the same normalisation
    alone = pool1.run(train_with, settings(stage), kind, {**options, "resume": True})[0]["losses"]
    assert list(alone.values()) == pytest.approx(list(resumed.values()), rel=2e-5)


def test_fine_tuning_starts_from_them(pool2: Pool, tmp_path: Path) -> None:
    options = {"steps": SAVE_AT, "folder": str(tmp_path), "save_at": SAVE_AT}
    pool2.run(train_with, settings(), "deepspeed", options)
    weights = tmp_path / "checkpoints" / f"step-{SAVE_AT:08d}" / "weights.safetensors"
    pretrained, _ = load_weights(weights)
    model = {**RESNET, "img_size": 48, "head_init": "zero"}
    tuned = experiment(model=model, cluster__zero_stage=2, cluster__micro_batch_size=4, optim__weight_decay=0.0)
    started = pool2.run(started_from, tuned, str(weights))[0]
    assert all(torch.equal(started[name], pretrained[name]) for name in started) and "bn1.running_var" in started
    losses = pool2.run(train_with, tuned, "deepspeed", {"steps": 4, "weights": str(weights)})[0]["losses"]
    assert losses[0] == pytest.approx(1.6094379, rel=1e-5) and losses[3] < losses[0]


def started_from(config: Experiment, weights: str) -> dict[str, Tensor]:
    """A rank's statistics at the start of a fine-tuning."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    return make(config, "deepspeed", weights)[0].statistics.read()
