"""Schedule-free AdamW: evaluations and weights files have the average of the weights, training and resumes have not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.engine.checkpoint_folder import weights_file
from pretrain.engine.state import TrainState
from pretrain.models.families.registry import build_model
from pretrain.models.interop import load_weights
from pretrain.objectives.registry import build_objective
from tests.distributed.test_equality_laws import settings
from tests.distributed.training import BATCH, CLASSES, checkpointer, global_batch, make, one_step
from tests.pool import Pool

STEPS = 4
OPTIM = {"name": "schedule_free", "lr": 0.02, "weight_decay": 0.1, "schedule": {"name": "constant"}}


def loss_of(model, config: Experiment) -> float:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return float(build_objective(config.objective, CLASSES)(model, global_batch(7, config)))


def weights_of(config: Experiment, kind: str, folder: str) -> dict[str, object]:
    """Losses of a batch as trained, averaged, and as trained again; saves a checkpoint."""
    backend, accumulation = make(config, kind)
    untrained = [loss_of(backend.forward, config)]
    with backend.averaged():  # before there is a state
        untrained.append(loss_of(backend.forward, config))
    backend.train(True)
    state = TrainState()
    for step in range(STEPS):
        _, update = one_step(backend, config, accumulation, step)
        state = state.advance(batch_size=BATCH, applied=update.applied)
    checkpointer(backend, config, Path(folder)).save(state)
    backend.train(False)
    losses = [loss_of(backend.forward, config)]
    with backend.averaged():
        losses.append(loss_of(backend.forward, config))
    return {"untrained": untrained, "losses": [*losses, loss_of(backend.forward, config)]}


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("stage", "kind", "precision"),
    [
        (2, "deepspeed", "fp32"),
        *(slow(stage, kind, "fp32") for stage, kind in ((0, "accelerate"), (0, "deepspeed"), (1, "deepspeed"))),
        *(slow(stage, kind, "fp32") for stage, kind in ((3, "deepspeed"), (0, "fsdp2"))),
        *(slow(stage, "deepspeed", "bf16") for stage in (0, 1, 3)),
        slow(0, "fsdp2", "bf16"),
        slow(1, "deepspeed", "autocast"),
    ],
)
def test_the_average_is_evaluated_and_exported(
    pool2: Pool, tmp_path: Path, stage: int, kind: str, precision: str
) -> None:
    config = settings(stage, 4, optim=OPTIM, precision=precision, model__drop_path=0.0)
    found = pool2.run(weights_of, config, kind, str(tmp_path))[0]
    trained, averaged, again = found["losses"]
    assert found["untrained"][0] == found["untrained"][1]
    assert trained == again and abs(averaged - trained) > 1e-3
    exported: dict[str, Tensor] = load_weights(weights_file(tmp_path, "raw"))[0]
    model = build_model(config.model, CLASSES)
    model.load_state_dict(exported)
    assert loss_of(model.eval(), config) == pytest.approx(averaged, rel=1e-6 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": {"name": "cosine"}}, "schedule: cosine lowers the learning rate"),
        ({"schedule": {"name": "constant", "cooldown": "5 steps"}}, "no cooldown"),
        ({"ema_decay": 0.9}, "ema_decay: schedule_free averages the weights itself"),
        ({"betas": (0.0, 0.99)}, "the first must be above 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(0, 4, optim=OPTIM | changes)
