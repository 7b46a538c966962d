"""Registry of backends: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.backend import EMA, MASTER, Backend, BackendOptions
from pretrain.errors import ConfigError
from pretrain.optim.optimizers import build_optimizer
from pretrain.sharding.choice import require_supported, sharding_of

Maker = Callable[[nn.Module, torch.optim.Optimizer, BackendOptions], Backend]


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
    optimizer = build_optimizer(model.to(device), experiment.optim, fused=uses_fused(experiment, device))
    options = BackendOptions.of(experiment, sharding, rank, device, micro_batch)
    backend = BACKENDS[sharding.backend](model, optimizer, options)
    if exact:
        _restore_master(backend, exact)
    if experiment.cluster.compile:  # in place, after the engine has installed its hooks on the blocks
        backend.model.compile_blocks()  # type: ignore[operator]
    return backend


def uses_fused(experiment: Experiment, device: torch.device) -> bool:
    """Whether to use torch's fused kernel: ``cluster.fused_optimizer``, where auto means on GPUs only."""
    wanted = experiment.cluster.fused_optimizer
    return experiment.optim.has_fused and device.type == "cuda" if wanted == "auto" else wanted


def choose_matmul_precision(device: torch.device, *, tf32: bool) -> None:
    """Sets the precision of fp32 matrix products and convolutions on a GPU, for which torch has different defaults.

    Raises:
        ConfigError: the device does not support TensorFloat-32.
    """
    if device.type != "cuda":
        if tf32:
            raise ConfigError("tf32: true would be ignored: the device is not a GPU; set it to false")
        return
    if tf32 and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ConfigError(
            f"tf32: true would be ignored: {name} has no TensorFloat-32 (A100 and later); set it to false"
        )
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[attr-defined]


def _exact_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def _restore_master(backend: Backend, exact: dict[str, Tensor]) -> None:
    """Restores the exact fp32 master weights, which DeepSpeed has copied from weights rounded to bf16."""
    for piece in backend.slices():
        for state in {MASTER, EMA} & piece.states.keys():
            view = piece.states[state]
            view.copy_(exact[piece.name].view(-1)[piece.offset : piece.offset + view.numel()])
    backend.finish_load(num_updates=0)
