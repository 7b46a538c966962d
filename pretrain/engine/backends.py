"""Registry of backends: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed import startup
from pretrain.distributed.device import choose_matmul_precision
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import STARTS_AS_WEIGHTS, Backend, BackendOptions
from pretrain.optim.optimizers import build_optimizer
from pretrain.optim.schedules import build_schedule
from pretrain.sharding.choice import require_supported, sharding_of

Maker = Callable[[nn.Module, torch.optim.Optimizer, BackendOptions], Backend]


def _deepspeed(*parts: object) -> Backend:
    from pretrain.engine.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(*parts)  # type: ignore[arg-type]


def _accelerate(*parts: object) -> Backend:
    from pretrain.engine.accelerate_backend import AccelerateBackend

    return AccelerateBackend(*parts)  # type: ignore[arg-type]


def _fsdp2(*parts: object) -> Backend:
    from pretrain.engine.fsdp2_backend import Fsdp2Backend

    return Fsdp2Backend(*parts)  # type: ignore[arg-type]


def _masters(*parts: object) -> Backend:
    from pretrain.engine.masters_backend import MastersBackend

    return MastersBackend(*parts)  # type: ignore[arg-type]


# ``Sharding.engine`` → the backend
BACKENDS: dict[str, Maker] = {
    "deepspeed": _deepspeed,
    "accelerate": _accelerate,
    "fsdp2": _fsdp2,
    "masters": _masters,
}


def build_backend(
    experiment: Experiment, model: nn.Module, rank: Rank, device: torch.device, kind: str, micro_batch: tuple[int, int]
) -> Backend:
    """Builds the optimiser and the backend around an unsharded model on the CPU. Collective: yes.

    Args:
        experiment: the settings.
        model: its weights are equal on every rank.
        rank: this process.
        device: the device to train on.
        kind: the backend that ``cluster.backend: auto`` means to the caller, a key of ``BACKENDS``.
        micro_batch: (images per pass, passes per step).

    Raises:
        ConfigError: a combination that does not train correctly, or a feature that the device lacks.
    """
    sharding = sharding_of(experiment, kind)
    require_supported(experiment, sharding)
    choose_matmul_precision(device, tf32=experiment.tf32)
    model.set_grad_checkpointing(experiment.cluster.activation_checkpointing)  # type: ignore[operator]
    exact = _exact_weights(model) if experiment.precision == "bf16" else {}
    optimizer = build_optimizer(
        model.to(device),
        experiment.optim,
        fused=uses_fused(experiment, device),
        schedule=build_schedule(experiment),
    )
    options = BackendOptions.of(experiment, sharding, rank, device, micro_batch)
    backend = BACKENDS[sharding.engine(experiment.precision)](model, optimizer, options)
    startup.limit_groups(experiment.cluster.collective_timeout_s)
    if exact:
        _restore_master(backend, exact)
    if experiment.cluster.compile:  # in place, after the engine has installed its hooks on the blocks
        backend.model.compile_blocks()  # type: ignore[operator]
    return backend


def uses_fused(experiment: Experiment, device: torch.device) -> bool:
    """Whether to use torch's fused kernel: ``cluster.fused_optimizer``, where auto means on GPUs only."""
    wanted = experiment.cluster.fused_optimizer
    return experiment.optim.has_fused and device.type == "cuda" if wanted == "auto" else wanted


def _exact_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def _restore_master(backend: Backend, exact: dict[str, Tensor]) -> None:
    """Restores the exact fp32 master weights, which DeepSpeed has copied from weights rounded to bf16."""
    for piece in backend.slices():
        for state in STARTS_AS_WEIGHTS & piece.states.keys():
            view = piece.states[state]
            view.copy_(exact[piece.name].view(-1)[piece.offset : piece.offset + view.numel()])
    backend.finish_load(num_updates=0)
