"""Backends by name: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import EMA, MASTER, Backend, BackendOptions
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
    model.set_grad_checkpointing(cluster.activation_checkpointing)  # type: ignore[operator]
    options = BackendOptions(
        rank=rank.rank,
        world=rank.world,
        device=device,
        precision=experiment.precision,
        micro_batch_size=micro_batch[0],
        accumulation_steps=micro_batch[1],
        clip_grad=experiment.optim.clip_grad,
        ema_decay=experiment.optim.ema_decay,
        zero_stage=cluster.zero_stage,
        extra=cluster.deepspeed,
    )
    exact = _exact_weights(model) if experiment.precision == "bf16" else {}
    optimizer = build_optimizer(model.to(device), experiment.optim)
    backend = BACKENDS[kind](model, optimizer, OPTIMIZERS[experiment.optim.name], options)
    if exact:
        _restore_master(backend, exact)
    if cluster.compile:  # in place, after the engine has hung its hooks around the blocks
        backend.model.compile_blocks()  # type: ignore[operator]
    return backend


def _exact_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def _restore_master(backend: Backend, exact: dict[str, Tensor]) -> None:
    """DeepSpeed makes its fp32 master weights from those that it has rounded to bf16; these are the exact ones."""
    for piece in backend.slices():
        for state in {MASTER, EMA} & piece.states.keys():
            view = piece.states[state]
            view.copy_(exact[piece.name].view(-1)[piece.offset : piece.offset + view.numel()])
    backend.finish_load(num_updates=0)
