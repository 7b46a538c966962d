"""Finds the first tensor of a forward and a backward pass that is not finite, by hooks on every module.

Hooks run in the order of the computation, and those of inner modules before those of the modules around them, so the
first finding is next to its cause: the output of a module whose input is finite, or the input of a module that the code
between two modules has computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.engine.backend import MASTER, HeldSlice
from pretrain.objectives.protocol import MicroBatch, Model, Objective

WEIGHTS, FORWARD, LOSS, BACKWARD = "weights", "forward", "loss", "backward"


@dataclass(frozen=True)
class Finding:
    """A tensor that is not finite.

    Attributes:
        phase: weights (before the step), forward, loss or backward.
        tensor: in words, such as ``output of blocks.1.mlp.fc1``.
        count, size: elements that are not finite, and all elements.
        rows: the images of the micro-batch that they belong to, where the tensor has a row for each.
    """

    phase: str
    tensor: str
    count: int
    size: int
    rows: tuple[int, ...] = ()


class Watch:
    """Keeps the first finding while its hooks are on."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._num_images = 0
        self.found: Finding | None = None

    @contextmanager
    def passes(self, num_images: int) -> Iterator[None]:
        """Context of the passes of one micro-batch."""
        self._num_images = num_images
        handles: list[Any] = []
        for name, module in self._model.named_modules():
            shown = name or "the model"
            handles.append(module.register_forward_pre_hook(partial(self._before, shown)))
            handles.append(module.register_forward_hook(partial(self._after, shown)))
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_hook(partial(self._gradient, f"gradient of {name}")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def look(self, phase: str, tensor: str, value: Tensor, *, has_rows: bool = True) -> None:
        """Takes a tensor into account."""
        if self.found is None and value.is_floating_point():
            found = finding(phase, tensor, value.detach(), self._num_images if has_rows else 0)
            self.found = found

    def _before(self, name: str, module: nn.Module, inputs: Any) -> None:
        for value in _tensors(inputs):
            self.look(FORWARD, f"input of {name}", value)

    def _after(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for value in _tensors(output):
            self.look(FORWARD, f"output of {name}", value)
            if value.requires_grad:
                value.register_hook(partial(self._gradient, f"gradient of the output of {name}", has_rows=True))

    def _gradient(self, tensor: str, gradient: Tensor, *, has_rows: bool = False) -> None:
        self.look(BACKWARD, tensor, gradient, has_rows=has_rows)


def finding(phase: str, tensor: str, value: Tensor, num_images: int = 0) -> Finding | None:
    """The finding in a tensor; None if it is finite."""
    value = value.to_local() if isinstance(value, DTensor) else value
    bad = ~torch.isfinite(value)
    count = int(bad.sum())
    if not count:
        return None
    has_rows = bool(num_images) and value.dim() > 0 and value.shape[0] == num_images
    rows = bad.flatten(1).any(1) if has_rows and value.dim() > 1 else bad if has_rows else None
    numbers = () if rows is None else tuple(rows.nonzero().flatten().tolist())
    return Finding(phase, tensor, count, value.numel(), numbers)


def in_weights(held: Iterable[HeldSlice]) -> Finding | None:
    """The first weight that is not finite before the step."""
    of_weights = ((piece.name, piece.states[MASTER]) for piece in held if MASTER in piece.states)
    found = (finding(WEIGHTS, name, value) for name, value in of_weights)
    return next((one for one in found if one is not None), None)


def in_loss(loss: Tensor, objective: Objective, model: Model, batch: MicroBatch) -> Finding | None:
    """The finding in a loss whose model is finite, with the images whose own loss is not."""
    found = finding(LOSS, "the loss", loss.detach())
    if found is None:
        return None
    with torch.no_grad():
        losses = [float(objective(model, _row(batch, row))) for row in range(len(batch.images))]
    rows = tuple(row for row, own in enumerate(losses) if own != own or own in (float("inf"), -float("inf")))
    return replace(found, rows=rows)


def _row(batch: MicroBatch, row: int) -> MicroBatch:
    """One image of a micro-batch."""
    tensors = {name: value[row : row + 1] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
