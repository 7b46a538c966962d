"""Stages that torchrun may start on several GPUs: joining the others, this rank's batches, and printing for all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from pipelines.terminal.output import LazyBar
from pretrain.config.schema.cluster import PhaseLimitsConfig
from pretrain.names import tell

if TYPE_CHECKING:
    from pretrain.data.batch import Batch
    from pretrain.data.workers.dataset import EvalDataset
    from pretrain.distributed.rank import Rank

PREFETCH = 2
START_LIMIT_S = PhaseLimitsConfig().start


@contextmanager
def joined(args: argparse.Namespace, timeout_s: int) -> Iterator[Rank]:
    """Joins the process group while the block runs; yields this process's rank. Collective: yes.

    Until all ranks have met, a watchdog limits the time; after that ``timeout_s`` does.

    Args:
        args: ``device``, as for ``choose_device``, becomes this rank's own.
        timeout_s: seconds after which a collective fails.
    """
    from pretrain.distributed.rank import detect
    from pretrain.distributed.watchdog import Watchdog

    rank = detect()
    if rank.world == 1:
        yield rank
        return
    with Watchdog(rank, {"start": START_LIMIT_S}) as watchdog:
        from pretrain.distributed import collectives, startup  # torch from here on

        wanted = args.device or "auto"
        args.device = str(startup.start(rank, timeout_s=timeout_s, watchdog=watchdog, device=wanted))
        collectives.barrier()  # a rank that has joined may hang before its first collective
        watchdog.at("evaluate", 0)
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


def batches_of(dataset: EvalDataset, rank: Rank, num_workers: int, doing: str) -> Generator[Batch, None, None]:
    """This rank's micro-batches, with a progress bar on rank 0.

    Args:
        dataset: makes them.
        rank: this process.
        num_workers: data processes, at most.
        doing: the bar's label.

    Raises:
        DataError: a shard cannot be read.
    """
    from pretrain.data.workers.dataset import Failure
    from pretrain.data.workers.processes import loader

    num_workers = min(num_workers, len(dataset) - 1)
    made = loader(dataset, range(len(dataset)), num_workers=num_workers, prefetch_factor=PREFETCH)
    done = 0
    with LazyBar(doing, dataset.num_samples, "images") as bar, closing(made):
        for batch in made:
            if isinstance(batch, Failure):
                raise batch.error
            yield batch
            done += len(batch) * rank.world
            if rank.is_main:
                bar.show(min(done, dataset.num_samples))
