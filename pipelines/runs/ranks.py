"""Stages that torchrun may start on several GPUs: joining the other ranks, and printing on behalf of all of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pretrain.names import tell

if TYPE_CHECKING:
    from pretrain.distributed.rank import Rank


@contextmanager
def joined(args: argparse.Namespace, timeout_s: int) -> Iterator[Rank]:
    """Joins the process group while the block runs; yields this process's rank. Collective: yes.

    Args:
        args: ``device`` becomes this rank's own if the user named none.
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


def teller(rank: Rank) -> Callable[[str], None]:
    """A function that prints a line for the user on stderr, on rank 0 only."""

    def say(line: str) -> None:
        if rank.is_main:
            tell(line, file=sys.stderr)

    return say
