"""A wish to stop, seen between the batches of an evaluation: all ranks leave it at the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from pretrain.data.batch import Batch
from pretrain.data.stream import EvalStream
from pretrain.distributed.collectives import is_distributed


class Interrupted(Exception):
    """A rank was asked to stop; no error."""


class InterruptibleStream(EvalStream):
    """A share of a set that ends early, on all ranks together, when one of them was asked to stop.

    Args:
        wants_stop: whether this rank was asked to.
        device: of the model.
    """

    def __init__(self, *args: Any, wants_stop: Callable[[], bool], device: torch.device, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wants_stop, self._device = wants_stop, device

    def __iter__(self) -> Iterator[Batch]:
        """The batches, until a rank wants to stop.

        The wish is added up over the ranks while the batch is evaluated and read before the next one, so no rank waits
        for the batch that it has just begun.

        Collective: yes; every rank has the same number of batches.

        Raises:
            Interrupted: on every rank, at most one batch after the wish.
        """
        wish, pending = torch.zeros((), device=self._device), None
        for batch in super().__iter__():
            self._leave_if(wish, pending)
            wish = torch.full((), float(self._wants_stop()), device=self._device)
            pending = dist.all_reduce(wish, async_op=True) if is_distributed() else None
            yield batch
        self._leave_if(wish, pending)

    def _leave_if(self, wish: torch.Tensor, pending: Any) -> None:
        if pending is not None:
            pending.wait()
        if wish.item():
            raise Interrupted
