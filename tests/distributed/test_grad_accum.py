"""Gradients of bf16 weights, summed over many micro-steps: exact in fp32, rounded in bf16."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import detect
from pretrain.engine.backend import MASTER
from pretrain.engine.backends import build_backend
from pretrain.models.families.registry import build_model, init_weights
from tests.distributed import training
from tests.pool import Pool

LR = 1.0


def config(stage: int, dtype: str) -> Experiment:
    return training.experiment(
        precision="bf16",
        cluster__zero_stage=stage,
        cluster__grad_accum_dtype=dtype,
        model__drop_path=0.0,
        optim={"name": "sgd", "lr": LR, "momentum": 0.0, "weight_decay": 0.0, "clip_grad": None},
    )


def batch_of(rank: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch of two images."""
    generator = torch.Generator().manual_seed(100 * rank + index)
    images = torch.randn(2, 3, training.SIZE, training.SIZE, generator=generator)
    return images.bfloat16(), torch.randint(training.CLASSES, (2,), generator=generator)


def autograd_sum(model: nn.Module, steps: int, world: int) -> dict[str, torch.Tensor]:
    """The mean over all ranks' micro-batches of the bf16 gradients that autograd computes, in fp64."""
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in model.named_parameters()}
    for rank in range(world):
        for index in range(steps):
            images, labels = batch_of(rank, index)
            model.zero_grad()
            (F.cross_entropy(model(images).float(), labels) / steps).backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                total[name] += parameter.grad.double() / world
    return total


def built(settings: Experiment) -> nn.Module:
    model = build_model(settings.model, settings.num_outputs)
    init_weights(model, settings.seed)
    return model


def error_after_autocast(stage: int) -> tuple[float, bool]:
    """The error of fp32 sums after an engine of autocast and stage 3, and whether ``linear`` is torch's own."""
    earlier = training.experiment(precision="autocast", cluster__zero_stage=3)
    build_backend(earlier, built(earlier), detect(), torch.device("cpu"), "deepspeed", (2, 1))
    own = torch._C._nn.linear  # pyright: ignore[reportAttributeAccessIssue]
    return error_of_a_step(stage, "fp32", 8), F.linear is own


def error_of_a_step(stage: int, dtype: str, steps: int, kind: str = "deepspeed") -> float:
    """Relative distance of the gradient of one step, read from what plain SGD changes, from autograd's sum."""
    rank, world, settings = detect(), dist.get_world_size(), config(stage, dtype)
    model = built(settings)
    plain = copy.deepcopy(model).bfloat16().train()
    backend = build_backend(settings, model, rank, torch.device("cpu"), kind, (2, steps))
    expected = autograd_sum(plain, steps, world)  # now: DeepSpeed's stage 3 gives the process another linear layer
    backend.train(True)
    before = {(piece.name, piece.offset): piece.states[MASTER].clone() for piece in backend.slices()}
    for index in range(steps):
        images, labels = batch_of(rank.rank, index)
        with backend.micro_step(boundary=index == steps - 1):
            backend.backward(F.cross_entropy(backend.forward(images).float(), labels))
    assert backend.step(LR).applied
    sums = torch.zeros(2, dtype=torch.float64)
    for piece in backend.slices():
        master = piece.states[MASTER]
        wanted = expected[piece.name].view(-1)[piece.offset : piece.offset + master.numel()]
        found = (before[piece.name, piece.offset].double() - master.double()) / LR
        sums += torch.stack([(found - wanted).square().sum(), wanted.square().sum()])
    dist.all_reduce(sums)
    return float((sums[0] / sums[1]).sqrt())


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        *[(stage, 8) for stage in (1, 2, 3)],
        *[pytest.param(stage, 64, marks=pytest.mark.slow) for stage in (1, 2, 3)],
    ],
)
def test_fp32_sums_are_those_of_autograd(pool2: Pool, stage: int, steps: int) -> None:
    exact = pool2.run(error_of_a_step, stage, "fp32", steps)
    assert max(exact) < 1e-5, exact


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_sums_are_not(pool2: Pool, stage: int) -> None:
    rounded = pool2.run(error_of_a_step, stage, "auto", 8)
    assert min(rounded) > 1e-3, "the sum in bf16 is that exact: the test above shows nothing"


@pytest.mark.parametrize("kind", ["fsdp2", "accelerate", "deepspeed"])
def test_stage_0_and_fsdp2_sum_as_asked(pool2: Pool, kind: str) -> None:
    assert max(pool2.run(error_of_a_step, 0, "fp32", 8, kind)) < 1e-5
    assert min(pool2.run(error_of_a_step, 0, "auto", 8, kind)) > 1e-3


def test_an_earlier_engine_changes_nothing(pool2: Pool) -> None:
    for error, own_linear in pool2.run(error_after_autocast, 1):
        assert error < 1e-5, error
        assert own_linear
