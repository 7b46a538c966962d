"""DistributedDataParallel by Accelerate: every rank holds the complete state. Only this file uses Accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from pretrain.engine.backend import (
    BackendOptions,
    FlatStates,
    HeldSlice,
    Read,
    Update,
    clip_reduced_gradients,
    frozen_slices,
    guarded,
    replicated_slices,
)
from pretrain.engine.statistics import RunningStatistics
from pretrain.optim.exchange import Batch
from pretrain.optim.groups import set_lr


class AccelerateBackend:
    """Trains replicated weights; Accelerate only prepares the model and the optimiser."""

    name = "accelerate"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        self._options = options
        self._accelerator = Accelerator(
            cpu=options.device.type == "cpu",
            mixed_precision="bf16" if options.precision == "autocast" else "no",
            # every rank keeps its own running statistics until they are averaged, as with DeepSpeed
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.model = model
        prepared: Any = self._accelerator.prepare(model, optimizer)
        self.forward, self._optimizer = prepared
        self._torch_optimizer = optimizer
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._states = FlatStates([Batch.of_unsharded(trained)], optimizer, options)
        self.statistics = RunningStatistics(model, options.world)

    def micro_step(self, *, boundary: bool) -> AbstractContextManager[None]:
        """See ``Backend.micro_step``."""
        return nullcontext() if boundary else self._accelerator.no_sync(self.forward)

    def backward(self, loss: Tensor) -> None:
        """See ``Backend.backward``."""
        self._accelerator.backward(guarded(loss) / self._options.accumulation_steps)

    def step(self, lr: float, read: Read = float) -> Update:
        """See ``Backend.step``."""
        set_lr(self._torch_optimizer.param_groups, lr)
        update = clip_reduced_gradients(self.model.parameters(), self._options.clip_grad, read)
        if update.applied:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.statistics.after(update.applied)
        return self._states.after(update)

    def train(self, mode: bool) -> None:
        """See ``Backend.train``."""
        self.forward.train(mode)

    def averaged(self) -> AbstractContextManager[None]:
        """See ``Backend.averaged``; the storages are the weights themselves."""
        return self._states.averaged(refresh=lambda: None)

    def slices(self) -> list[HeldSlice]:
        """See ``Backend.slices``; every rank holds the complete state and owns an equal share of it."""
        named, rank = dict(self.model.named_parameters()), self._options.rank
        trained = replicated_slices(named.items(), self._states, rank, self._options.world)
        return [*trained, *frozen_slices(named.items(), rank, has_ema=self._states.has_ema)]

    def finish_load(self, num_updates: int) -> None:
        """See ``Backend.finish_load``; the views are the weights themselves, so only the counters need an update."""
        self._states.set_num_updates(num_updates)
