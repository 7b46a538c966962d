"""bf16 weights on every rank, with fp32 master weights: DDP and ZeRO stage 0 at ``precision: bf16``, with torch alone.

Accelerate has no master weights, and DeepSpeed's optimiser for this case takes a step on zero gradients at its start,
which Adam counts (0.19.8). Here the optimiser keeps the fp32 parameters that it was built with, and the model computes
with bf16 copies of them, which are refreshed after each update.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from pretrain.engine.backend import (
    BackendOptions,
    FlatStates,
    HeldSlice,
    Read,
    Update,
    cast_buffers,
    clip_reduced_gradients,
    frozen_slices,
    guarded,
    replicated_slices,
)
from pretrain.engine.gradient_sums import GradientSums
from pretrain.engine.statistics import RunningStatistics
from pretrain.optim.exchange import Batch
from pretrain.optim.groups import set_lr
from pretrain.sharding.replicated import BUCKET
from pretrain.sharding.step import sums_in_fp32


class MastersBackend:
    """Trains replicated bf16 weights by their fp32 masters."""

    name = "masters"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        self.model = self.forward = model
        self._options, self._optimizer = options, optimizer
        masters = _cast_weights(model)
        self._masters = {name: masters[weight] for name, weight in model.named_parameters()}
        self._master_of = {weight: master for weight, master in masters.items() if weight.requires_grad}
        trained = {name: master for name, master in self._masters.items() if master.requires_grad}
        self._states = FlatStates([Batch.of_unsharded(trained)], optimizer, options)
        dtype = torch.float32 if sums_in_fp32(options.passed_on) else torch.bfloat16
        self._sums = GradientSums(list(self._master_of), dtype, options.world, BUCKET)
        self.statistics = RunningStatistics(model, options.world)

    def micro_step(self, *, boundary: bool) -> AbstractContextManager[None]:
        """See ``Backend.micro_step``."""
        self._sums.expect(last=boundary)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See ``Backend.backward``."""
        (guarded(loss) / self._options.accumulation_steps).backward()

    def step(self, lr: float, read: Read = float) -> Update:
        """See ``Backend.step``."""
        set_lr(self._optimizer.param_groups, lr)
        for weight, total in self._sums.finish():
            self._master_of[weight].grad = total.float()
            del total
        update = clip_reduced_gradients(self._master_of.values(), self._options.clip_grad, read)
        if update.applied:
            self._optimizer.step()
        for master in self._master_of.values():
            master.grad = None
        if update.applied:
            self._refresh()
        self.statistics.after(update.applied)
        return self._states.after(update)

    def train(self, mode: bool) -> None:
        """See ``Backend.train``."""
        self.model.train(mode)

    def averaged(self) -> AbstractContextManager[None]:
        """See ``Backend.averaged``."""
        return self._states.averaged(self._refresh)

    def slices(self) -> list[HeldSlice]:
        """See ``Backend.slices``; every rank holds the complete state and owns an equal share of it."""
        rank, world = self._options.rank, self._options.world
        trained = replicated_slices(self._masters.items(), self._states, rank, world)
        return [*trained, *frozen_slices(self._masters.items(), rank, has_ema=self._states.has_ema)]

    def finish_load(self, num_updates: int) -> None:
        """See ``Backend.finish_load``."""
        self._states.set_num_updates(num_updates)
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        """Rounds the masters to the weights that the model computes with."""
        torch._foreach_copy_(list(self._master_of), [master.detach() for master in self._master_of.values()])


def _cast_weights(model: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Gives a model bf16 parameters instead of its own; returns them with those that they replace.

    A frozen parameter needs no master: it is cast in place and listed as its own.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}  # a shared parameter stays shared
    for module in model.modules():
        for key, master in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if master not in made:
                rounded = master.detach().to(torch.bfloat16)
                made[master] = nn.Parameter(rounded, requires_grad=master.requires_grad)
            setattr(module, key, made[master])
    cast_buffers(model)
    return {weight: master if master.requires_grad else weight for master, weight in made.items()}
