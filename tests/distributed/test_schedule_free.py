"""Schedule-free AdamW: evaluations and weights files have the average of the weights, training and resumes have not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.engine.checkpoint_folder import weights_file
from pretrain.engine.state import TrainState
from pretrain.models.families.registry import build_model
from pretrain.models.interop import load_weights
from tests.distributed.test_equality_laws import settings
from tests.distributed.training import BATCH, CLASSES, checkpointer, global_batch, make, one_step
from tests.pool import Pool

STEPS = 4
OPTIM = {
    "name": "schedule_free", "lr": 0.02, "weight_decay": 0.1, "betas": (0.5, 0.99), "schedule": {"name": "constant"},
}  # fmt: skip
IMAGES = 7  # the step whose images the logits are of
NEAR = 0.05  # of the distance between the logits of the average and of the weights that are trained


def logits_of(model, config: Experiment) -> Tensor:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return model(global_batch(IMAGES, config).images).double()


def logits_and_states(config: Experiment, kind: str, folder: str) -> dict[str, Any]:
    """Logits as trained, averaged, and as trained again; the sums over the updates of what this rank has of z.

    Saves a checkpoint.
    """
    backend, accumulation = make(config, kind)
    untrained = [logits_of(backend.forward, config)]
    with backend.averaged():  # before there is a state
        untrained.append(logits_of(backend.forward, config))
    backend.train(True)
    state, sums = TrainState(), {}
    for step in range(STEPS):
        _, update = one_step(backend, config, accumulation, step)
        state = state.advance(batch_size=BATCH, applied=update.applied)
        for piece in backend.slices():
            place = piece.name, piece.shape, piece.owned[0]
            sums[place] = sums.get(place, 0) + piece.owned_states()["z"].double()
    checkpointer(backend, config, Path(folder)).save(state)
    backend.train(False)
    logits = [logits_of(backend.forward, config)]
    with backend.averaged():
        logits.append(logits_of(backend.forward, config))
    return {"untrained": untrained, "logits": [*logits, logits_of(backend.forward, config)], "sums": sums}


def mean_of(sums: list[dict[tuple, Tensor]]) -> dict[str, Tensor]:
    """The mean of z over the updates, float64, from the pieces of all ranks.

    Source: with equal weights it is x of algorithm 1 of 2405.15682: x' = (1 - 1 / t) x + z / t.
    """
    flat: dict[str, Tensor] = {}
    for (name, shape, start), piece in (item for of_rank in sums for item in of_rank.items()):
        whole = flat.setdefault(name, torch.full(shape, torch.nan, dtype=torch.float64))
        whole.view(-1)[start : start + piece.numel()] = piece / STEPS
    return flat


def reference(config: Experiment, weights: dict[str, Tensor]) -> Tensor:
    """The logits of these weights by the plain model, in the precision of the run."""
    model = build_model(config.model, CLASSES)
    model.load_state_dict(weights)
    if config.precision == "bf16":
        model, images = model.bfloat16(), global_batch(IMAGES, config).images.bfloat16()
    else:
        images = global_batch(IMAGES, config).images
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "autocast"):
        return model.eval()(images).double()


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
    found = pool2.run(logits_and_states, config, kind, str(tmp_path))
    mean = mean_of([of_rank["sums"] for of_rank in found])
    exported: dict[str, Tensor] = load_weights(weights_file(tmp_path, "raw"))[0]
    assert exported.keys() == mean.keys()
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor.double(), mean[name], rtol=1e-5, atol=1e-6, msg=name)
    wanted = reference(config, mean)
    for of_rank in found:
        assert torch.equal(*of_rank["untrained"])
        trained, averaged, again = of_rank["logits"]
        assert torch.equal(trained, again)
        assert (averaged - wanted).norm() < NEAR * (trained - wanted).norm()


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
