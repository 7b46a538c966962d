"""Fully sharded data parallel with torch alone: ``fully_shard`` on each block, and on what is outside the blocks.

torch gives each rank some rows of every parameter, in fp32, and gathers a block before its use, with
``precision: bf16`` as bfloat16. The optimiser, the EMA and checkpoints work on these rows as plain tensors, so no other
code meets a DTensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pretrain.distributed.collectives import all_reduce_sum
from pretrain.engine.backend import (
    EMA,
    MASTER,
    BackendOptions,
    FlatStates,
    HeldSlice,
    Read,
    Update,
    cast_buffers,
    clip_reduced_gradients,
    guarded,
)
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import ConfigError
from pretrain.optim.exchange import Batch, Fragment
from pretrain.optim.groups import set_lr
from pretrain.sharding.step import Fsdp2Settings, sums_in_fp32


@dataclass(frozen=True)
class Shard:
    """The rows of a parameter that this rank holds.

    Attributes:
        name: of the parameter.
        parameter: torch's sharded parameter, which receives the gradient.
        rows: this rank's rows, in the same memory; the optimiser updates them. There may be none.
        offset: index of their first element in the flattened parameter.
    """

    name: str
    parameter: nn.Parameter
    rows: nn.Parameter
    offset: int

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter, rank: int, world: int) -> Shard:
        """The shard of a parameter of a sharded model: torch gives every rank as many rows, the last ones fewer."""
        rows = nn.Parameter(_local(parameter), requires_grad=parameter.requires_grad)
        first = min(rank * -(-parameter.shape[0] // world), parameter.shape[0])
        return cls(name, parameter, rows, first * parameter[0].numel() if parameter.shape[0] else 0)


class Fsdp2Backend:
    """Trains sharded weights with torch's ``fully_shard``."""

    name = "fsdp2"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        self._options, self._optimizer = options, optimizer
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        self.model = _sharded(model, options)
        rank, world = options.rank, options.world
        self._shards = [Shard.of(name, parameter, rank, world) for name, parameter in self.model.named_parameters()]
        rows = {shard.name: shard.rows for shard in self._shards}
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [rows[name] for name in members if rows[name].numel()]
        self._trained = [shard for shard in self._shards if shard.rows.requires_grad]
        self._states = FlatStates([_batch_of(self._trained)], optimizer, options)
        self.statistics = RunningStatistics(self.model, world)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """See ``Backend.forward``."""
        with self._autocast():
            return self.model(*args, **kwargs)

    def micro_step(self, *, boundary: bool) -> AbstractContextManager[None]:
        """See ``Backend.micro_step``; before the boundary, complete gradients are summed without communication."""
        cast(FSDPModule, self.model).set_requires_gradient_sync(boundary)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See ``Backend.backward``."""
        (guarded(loss) / self._options.accumulation_steps).backward()

    def step(self, lr: float, read: Read = float) -> Update:
        """See ``Backend.step``."""
        set_lr(self._optimizer.param_groups, lr)
        for shard in self._trained:
            shard.rows.grad = None if shard.parameter.grad is None else _local(shard.parameter.grad)
            shard.parameter.grad = None
        rows = [shard.rows for shard in self._trained]
        update = clip_reduced_gradients(rows, self._options.clip_grad, read, over_ranks=_norm_over_ranks)
        if update.applied:
            self._optimizer.step()
        for parameter in rows:
            parameter.grad = None
        self.statistics.after(update.applied)
        return self._states.after(update)

    def train(self, mode: bool) -> None:
        """See ``Backend.train``; frees weights that an evaluation has gathered."""
        self.model.train(mode)
        self._reshard()

    def averaged(self) -> AbstractContextManager[None]:
        """See ``Backend.averaged``."""
        return self._states.averaged(self._reshard)

    def slices(self) -> list[HeldSlice]:
        """See ``Backend.slices``."""
        return [*self._states.sharded_slices(), *self._frozen_slices()]

    def finish_load(self, num_updates: int) -> None:
        """See ``Backend.finish_load``."""
        self._states.set_num_updates(num_updates)
        self._reshard()

    def _frozen_slices(self) -> Iterator[HeldSlice]:
        """The EMA of a frozen weight is the weight."""
        for shard in self._shards:
            if shard.rows.requires_grad or not shard.rows.numel():
                continue
            view = shard.rows.data.view(-1)
            states = {MASTER: view, EMA: view} if self._states.has_ema else {MASTER: view}
            owned = (shard.offset, shard.offset + view.numel())
            yield HeldSlice(shard.name, tuple(shard.parameter.shape), shard.offset, states, owned)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._options.precision != "autocast":
            return nullcontext()
        return torch.autocast(self._options.device.type, torch.bfloat16)

    def _reshard(self) -> None:
        """Drops complete weights, so that the next forward pass gathers them again."""
        for module in _sharded_modules(self.model):
            module.reshard()


def _batch_of(shards: list[Shard]) -> Batch:
    """The rows of all trained parameters, which are updated together."""
    held = [shard for shard in shards if shard.rows.numel()]
    parts = [Fragment(s.name, tuple(s.parameter.shape), s.offset, s.rows, 0, s.rows.numel()) for s in held]
    return Batch(tuple(shard.rows for shard in shards), tuple(parts))


def _sharded(model: nn.Module, options: BackendOptions) -> nn.Module:
    """Shards a model in place: each of its units, then all other parameters together.

    Raises:
        ConfigError: a parameter has no rows.
    """
    for name, parameter in model.named_parameters():
        if not parameter.ndim:
            raise ConfigError(
                f"cluster.backend: fsdp2 shards parameters by rows, and {name} is a single number; use deepspeed or "
                "accelerate"
            )
    settings = Fsdp2Settings.of(options.passed_on)
    how: dict[str, Any] = {"mesh": init_device_mesh(options.device.type, (options.world,))}
    if options.precision == "bf16":
        summed = torch.float32 if sums_in_fp32(options.passed_on) else torch.bfloat16
        how["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, summed, cast_forward_inputs=False)
        cast_buffers(model)
    for name in model.units():  # type: ignore[operator]
        fully_shard(model.get_submodule(name), reshard_after_forward=settings.reshard_after_forward, **how)
    fully_shard(model, reshard_after_forward=False, **how)
    if options.device.type == "cpu":  # gloo cannot average
        for module in _sharded_modules(model):
            module.set_force_sum_reduction_for_comms(True)
    return model


def _sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _local(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that this rank holds, in the same memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def _norm_over_ranks(norm: Tensor) -> Tensor:
    """The norm of a sharded gradient from the norms of the shards. Collective: yes."""
    return all_reduce_sum(norm.square()).sqrt()
