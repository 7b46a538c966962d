"""A wish to stop, seen between the batches of an evaluation: all ranks leave it at the same batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist

from pretrain.data.batch import Batch
from pretrain.distributed.collectives import is_distributed


class Interrupted(Exception):  # no error: it was asked for
    """A rank was asked to stop."""


def interruptible(batches: Iterable[Batch], wants_stop: Callable[[], bool], device: torch.device) -> Iterator[Batch]:
    """The batches, until a rank wants to stop.

    The wish is added up over the ranks while the batch is evaluated and read before the next one, so no rank waits for
    the batch that it has just begun.

    Collective: yes; every rank brings the same number of batches.

    Raises:
        Interrupted: on every rank, at most one batch after the wish.
    """
    wish, pending = torch.zeros((), device=device), None
    for batch in batches:
        if pending is not None:
            pending.wait()
        if wish.item():
            raise Interrupted
        wish = torch.full((), float(wants_stop()), device=device)
        pending = dist.all_reduce(wish, async_op=True) if is_distributed() else None
        yield batch
    if pending is not None:
        pending.wait()
    if wish.item():
        raise Interrupted
