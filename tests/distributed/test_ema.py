"""The Polyak average: equal to a plain single-process one at every stage, saved, resumed elsewhere, evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.engine.checkpoint_folder import newest_valid
from pretrain.engine.slices import SliceReader
from pretrain.models.families.registry import build_model
from pretrain.models.init import init_weights
from pretrain.objectives.registry import build_objective
from pretrain.optim.optimizers import build_optimizer
from pretrain.optim.schedules import build_schedule
from tests.distributed.test_equality_laws import settings
from tests.distributed.training import CLASSES, global_batch, make, train_with
from tests.pool import Pool

DECAY, STEPS = 0.9, 10  # eps: the gradient of a key bias is rounding noise, which Adam would blow up to the size of lr


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    """The average of a plain loop on whole batches, with torch's own optimiser and clipping."""
    config = settings(0, 4, optim__ema_decay=DECAY, optim__eps=1e-4)
    model = build_model(config.model, CLASSES)
    init_weights(model, config.seed)
    optimizer, schedule = build_optimizer(model, config.optim), build_schedule(config)
    objective = build_objective(config.objective, CLASSES)
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad()
        objective(model, global_batch(step, config)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, parameter in model.named_parameters():
            average[name] = DECAY * average[name] + (1 - DECAY) * parameter.detach()
    return average


def read(folder: Path, state: str) -> dict[str, Tensor]:
    found = newest_valid(folder, print)
    assert found is not None
    reader = SliceReader(found[0], range(found[1]["world_size"]))
    return {name: reader.full(state, name) for name in reader.parameter_names()}


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("stage", "micro", "kind"),
    [
        (0, 4, "deepspeed"),
        (1, 2, "deepspeed"),
        (2, 4, "deepspeed"),
        (3, 4, "deepspeed"),
        (0, 2, "accelerate"),
        (0, 2, "fsdp2"),
    ],
)
def test_equals_a_single_process(
    pool2: Pool, tmp_path: Path, reference: dict[str, Tensor], stage: int, micro: int, kind: str
) -> None:
    config = settings(stage, micro, optim__ema_decay=DECAY, optim__eps=1e-4)
    pool2.run(train_with, config, kind, {"steps": STEPS, "save_at": STEPS, "folder": str(tmp_path)})
    averages = read(tmp_path, "ema")
    assert_near(averages, reference)
    assert not torch.allclose(averages["head.weight"], read(tmp_path, "master")["head.weight"], atol=1e-4)


def test_goes_on_at_another_layout(pool2: Pool, pool4: Pool, tmp_path: Path, reference: dict[str, Tensor]) -> None:
    half = {"steps": 5, "save_at": 5, "folder": str(tmp_path)}
    pool4.run(train_with, settings(3, 2, optim__ema_decay=DECAY, optim__eps=1e-4), "deepspeed", half)
    rest = {"steps": STEPS, "save_at": STEPS, "folder": str(tmp_path), "resume": True}
    pool2.run(train_with, settings(1, 4, optim__ema_decay=DECAY, optim__eps=1e-4), "deepspeed", rest)
    assert_near(read(tmp_path, "ema"), reference)


def swap_and_back(config: Experiment, kind: str) -> tuple[float, float, float]:
    """Loss of a batch with the weights, with the average, and with the weights again."""
    from tests.distributed.training import one_step

    backend, accumulation = make(config, kind)
    objective = build_objective(config.objective, CLASSES)
    for step in range(3):
        one_step(backend, config, accumulation, step)
    backend.train(False)

    @torch.no_grad()
    def loss() -> float:
        return float(objective(backend.forward, global_batch(7, config)))

    before = loss()
    with backend.averaged():
        inside = loss()
    return before, inside, loss()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("stage", "kind"), [*((stage, "deepspeed") for stage in (0, 1, 2, 3)), (0, "fsdp2")])
def test_the_average_stands_in_for_the_weights(pool2: Pool, stage: int, kind: str, precision: str) -> None:
    if (stage, precision) == (0, "bf16") and kind != "fsdp2":
        return
    config = settings(stage, 4, optim__ema_decay=DECAY, optim__eps=1e-4, optim__lr=0.05, precision=precision)
    for before, inside, after in pool2.run(swap_and_back, config, kind):
        assert before == after and abs(inside - before) > 1e-3


def initial_master(config: Experiment, folder: str) -> dict[str, Tensor]:
    return {piece.name: piece.states["master"].clone() for piece in make(config)[0].slices()}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_starts_from_exact_master_weights(pool1: Pool, stage: int) -> None:
    """DeepSpeed would round them to bf16 first."""
    config = settings(stage, 8, precision="bf16")
    model = build_model(config.model, CLASSES)
    init_weights(model, config.seed)
    for masters in pool1.run(initial_master, config, ""):
        for name, parameter in model.named_parameters():
            assert torch.equal(masters[name], parameter.detach().view(-1)), name
