"""Backends by name: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pretrain.config.schema import Experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import Backend, BackendOptions
from pretrain.optim.optimizers import OPTIMIZERS, OptimizerSpec, build_optimizer

Maker = Callable[[nn.Module, torch.optim.Optimizer, OptimizerSpec, BackendOptions], Backend]


def _deepspeed(*parts: object) -> Backend:
    from pretrain.engine.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(*parts)  # type: ignore[arg-type]


def _accelerate(*parts: object) -> Backend:
    from pretrain.engine.accelerate_backend import AccelerateBackend

    return AccelerateBackend(*parts)  # type: ignore[arg-type]


BACKENDS: dict[str, Maker] = {"deepspeed": _deepspeed, "accelerate": _accelerate}


def build_backend(
    experiment: Experiment, model: nn.Module, rank: Rank, device: torch.device, kind: str, micro_batch: tuple[int, int]
) -> Backend:
    """Optimiser and backend around a whole model on the CPU. Collective: yes.

    Args:
        experiment: the settings.
        model: its weights are equal on every rank.
        rank: this process.
        device: where it trains.
        kind: a key of ``BACKENDS``.
        micro_batch: (images per pass, passes per step).
    """
    cluster = experiment.cluster
    model.set_grad_checkpointing(cluster.activation_checkpointing)
    options = BackendOptions(
        rank=rank.rank,
        world=rank.world,
        device=device,
        precision=experiment.precision,
        micro_batch_size=micro_batch[0],
        accumulation_steps=micro_batch[1],
        clip_grad=experiment.optim.clip_grad,
        zero_stage=cluster.zero_stage,
        extra=cluster.deepspeed,
    )
    optimizer = build_optimizer(model.to(device), experiment.optim)
    return BACKENDS[kind](model, optimizer, OPTIMIZERS[experiment.optim.name], options)
