"""Running statistics: tensors of a model that training changes without a gradient (BatchNorm's mean and variance).

Each rank normalises with the statistics of its own micro-batch, as is usual, and so accumulates its own running values.
For evaluation, checkpoints and weights files they are averaged over the ranks (timm's ``dist-bn reduce``).
A step whose update is skipped does not change them. A model without such tensors costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pretrain import disk
from pretrain.distributed.collectives import all_reduce_sum
from pretrain.errors import CheckpointError


class RunningStatistics:
    """The tensors in the state dict of ``model`` that are not parameters.

    Args:
        model: the bare module, on its device. Tensors are looked up at every use, since an engine may replace them.
        world: ranks that train it.
    """

    def __init__(self, model: nn.Module, world: int) -> None:
        self._model, self._world = model, world
        self.names = statistics_names(model)
        self._before = self.read()

    def live(self) -> dict[str, Tensor]:
        """Name → this rank's tensor."""
        return {name: self._model.get_buffer(name) for name in self.names}

    def read(self) -> dict[str, Tensor]:
        """Name → a copy on the device."""
        return {name: tensor.detach().clone() for name, tensor in self.live().items()}

    @torch.no_grad()
    def after(self, applied: bool) -> None:
        """Ends a step: keeps its statistics, or restores the previous ones if its update was skipped."""
        if applied:
            self._before = self.read()
        else:
            self.write(self._before)

    @torch.no_grad()
    def unify(self) -> None:
        """Sets the statistics on every rank to the mean over the ranks. Collective: if there are any."""
        if self._world == 1:
            return
        for tensor in self.live().values():
            if tensor.is_floating_point():  # counters are the same on every rank
                tensor.copy_(all_reduce_sum(tensor) / self._world)
        self._before = self.read()

    @torch.no_grad()
    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the statistics from a checkpoint.

        Raises:
            CheckpointError: a statistic is missing.
        """
        for name, tensor in self.live().items():
            if name not in tensors:
                raise CheckpointError(f"the running statistic {name} of the model is not in the checkpoint")
            tensor.copy_(tensors[name])
        self._before = self.read()

    def load(self, weights: Path) -> None:
        """Sets the statistics from a checkpoint's plain weights, since the slices contain only parameters.

        Raises:
            CheckpointError: a statistic is missing. OSError, SafetensorError: the file cannot be read.
        """
        if self.names:
            opened = disk.current.read_with(weights, lambda path: safe_open(path, framework="pt", device="cpu"))
            with opened as file:
                self.write({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def statistics_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors in the state dict that are not parameters."""
    parameters = {name for name, _ in model.named_parameters()}
    return tuple(name for name in model.state_dict(keep_vars=True) if name not in parameters)
