"""Stages that torchrun may start on several GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.distributed.rank import Rank


@contextmanager
def joined(args: argparse.Namespace, timeout_s: int) -> Iterator[Rank]:
    """This process among its peers, in their process group while the block runs. Collective: yes.

    Args:
        args: ``device``, where the user named none, becomes this rank's own.
        timeout_s: seconds after which a collective fails.
    """
    from pretrain.distributed import startup
    from pretrain.distributed.rank import detect

    rank = detect()
    if rank.world == 1:
        yield rank
        return
    device = startup.start(rank, timeout_s=timeout_s)
    args.device = args.device or str(device)
    try:
        yield rank
    finally:
        startup.leave()
