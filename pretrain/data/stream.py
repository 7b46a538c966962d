"""The training stream and the evaluation sets, as the engine uses them.

Legend: B images per global batch · R ranks · b images in a micro-batch.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.config.batches import Batches
from pretrain.config.schema.evaluation import KINDS
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.batch import Batch
from pretrain.data.order.order import Lanes, check_world
from pretrain.data.sources import check_cache, check_target, lanes_of, mix, open_sources, sources_digest
from pretrain.data.storage.packed_set import open_packed
from pretrain.data.storage.store import MAX_OPEN_SHARDS
from pretrain.data.storage.tally import FaultLog, Tally
from pretrain.data.transforms import eval_transform, train_transform
from pretrain.data.workers.dataset import EvalDataset, Failure, MicroStep, Share, TrainDataset, read_samples
from pretrain.data.workers.processes import loader
from pretrain.data.workers.reader import MixedReader, ShardReader
from pretrain.data.workers.worker import fork_server
from pretrain.errors import DataError


class TrainStream:
    """This rank's part of an endless training stream.

    Args:
        config: the experiment.
        rank: this rank.
        world: R.
        micro_batch_size: b; must divide B / R.
        local_world: ranks of this node, which share its cache.
        quarantine: folder for one file per rank that lists unusable samples; None: not written.

    Attributes:
        sources: the sets.
        card: the first set's card.
        digest: of the sets and samples to draw from; with seed, B and lanes, it determines the order.
        classes: (id, name) in index order.
        order: position → samples.
        faults: unusable samples so far.
        tally: bytes read and fetched so far, by all data processes of this rank.

    Raises:
        ConfigError: R ranks cannot draw the same batches, or b does not divide B / R.
        DataError: the shards are missing or truncated, or do not match the config.
    """

    def __init__(
        self,
        config: Experiment,
        rank: int,
        world: int,
        micro_batch_size: int,
        *,
        local_world: int = 1,
        quarantine: Path | None = None,
    ) -> None:
        data = config.data
        self._config, self._rank, self._world, self._micro_batch_size = config, rank, world, micro_batch_size
        lanes = lanes_of(config)
        check_world(config.batches.unit, lanes, world)
        config.accumulation_steps(world, micro_batch_size)  # refuses a micro-batch that does not fit
        self.sources = open_sources(config)
        check_cache(self.sources, config, lanes, world=world, local_world=local_world)
        for source in self.sources:
            if rank == 0 or not source.packed.location.is_remote:  # requests from one rank are enough
                source.packed.check_files()
        self.order = mix(self.sources, config, lanes)
        self.digest = sources_digest(self.sources, self.order)
        self.card = self.sources[0].packed.card
        self.classes = self.sources[0].packed.classes
        path = None if quarantine is None else quarantine / f"rank-{rank:05d}.jsonl"
        self.faults = FaultLog(data.drawn_samples, data.max_bad_sample_rate, path)
        self.tally = Tally(config.cluster.num_workers)
        if config.cluster.num_workers:
            fork_server()  # it imports PyTorch while the engine is being built

    @property
    def class_names(self) -> list[str]:
        """Class names in index order."""
        return [name for _, name in self.classes]

    @property
    def samples_per_rank(self) -> int:
        """B / R, of a step of the largest images."""
        return self._config.global_batch_size // self._world

    def as_rank(self, rank: int, world: int, micro_batch_size: int) -> TrainStream:
        """The same stream as another rank of a job sees it.

        Raises:
            ConfigError: R ranks cannot draw the same batches, or b does not divide B / R.
        """
        check_world(self._config.batches.unit, self.order.lanes, world)
        self._config.accumulation_steps(world, micro_batch_size)
        other = copy.copy(self)
        other._rank, other._world, other._micro_batch_size = rank, world, micro_batch_size
        return other

    def iterate(self, position: int, num_steps: int, first_step: int | None = None) -> Generator[Batch, None, None]:
        """The micro-batches of ``num_steps`` steps, in order: B / (R b) of them for each step.

        Args:
            position: samples that all ranks drew before the first step.
            num_steps: number of steps.
            first_step: position on the schedule, which decides the size of the images; None: that of a run that
                skipped no samples.

        Raises:
            ConfigError: the stream cannot start there.
            DataError: a shard cannot be read, or too many samples are bad.
        """
        config = self._config
        self.order.batch(position, self._rank, self._world, stop=0)  # checks the position before any process is started
        share = Share(self._rank, self._world, self._micro_batch_size)
        steps = MicroSteps(
            position,
            num_steps,
            batches=config.batches,
            share=share,
            first_step=config.batches.step(position) if first_step is None else first_step,
        )
        dataset = TrainDataset(
            self.reader(),
            self.order,
            train_transform(config),
            share,
            fetch_threads=config.cluster.cache.num_threads,
            largest_batch=steps.largest_batch,
        )
        num_workers = min(config.cluster.num_workers, len(steps))
        made = loader(dataset, steps, num_workers=num_workers, prefetch_factor=config.cluster.prefetch_factor)
        with closing(dataset), closing(made):
            yield from _accounted(made, self.faults)

    def first_samples(self, count: int) -> tuple[Batch, list[str]]:
        """The first ``count`` selected samples of the (first) set, transformed as in evaluation; see ``read_samples``.

        Returns:
            The batch, and descriptions of the samples that could not be read.

        Raises:
            DataError: an index cannot be read.
        """
        config, selection = self._config, self.sources[0].selection
        choices = np.arange(min(count, int(selection.sizes.sum())))
        transform = eval_transform(config, config.data.eval_transform)
        return read_samples(self.reader(counted=False), selection.sample_ids(choices).tolist(), transform)

    def reader(self, *, counted: bool = True) -> MixedReader:
        """A reader of the training sets; ``counted``: whether the tally includes it."""
        cluster, lanes = self._config.cluster, self.order.lanes
        max_open = min(
            MAX_OPEN_SHARDS, 2 * len(Lanes(self._config.batches.unit, lanes).of_rank(self._rank, self._world))
        )
        readers = [
            ShardReader(
                source.packed.table,
                source.packed.store(cluster, lanes, max_open=max_open, tally=self.tally if counted else None),
                source.selection,
            )
            for source in self.sources
        ]
        places = [str(source.packed.location) for source in self.sources]
        return MixedReader(readers, [source.first_sample_id for source in self.sources], places)


class EvalRequest(NamedTuple):
    """Which samples of a set to evaluate, and how.

    Attributes:
        sample_ids: int64, the samples to evaluate; None: all.
        transform: replaces the experiment's evaluation transform.
        any_classes: the set may have other classes than the training set.
        kind: of evaluation, which determines the required kind of target; None: that of the training objective.
    """

    sample_ids: NDArray[np.int64] | None = None
    transform: EvalTransformConfig | None = None
    any_classes: bool = False
    kind: str | None = None


class EvalStream:
    """This rank's part of an evaluation set: every image once over all ranks, the same number of batches on each.

    Each iteration starts from the beginning.

    Args:
        config: the experiment; its model's size and its evaluation transform.
        shards: location of the set.
        rank: this rank, which evaluates the samples i ≡ rank (mod world).
        world: R.
        micro_batch_size: b.
        request: which samples to evaluate, and how.

    Raises:
        DataError: the shards are missing or truncated, have other classes than the training set, or another kind of
            target than the evaluation needs.
    """

    # many: evaluation in training, predict, evaluate and probe differ in the last four, which have defaults
    def __init__(
        self,
        config: Experiment,
        shards: str,
        rank: int,
        world: int,
        micro_batch_size: int,
        request: EvalRequest = EvalRequest(),  # noqa: B008, it is frozen
    ) -> None:
        self._config = config
        packed = open_packed(shards, config.cluster, allow_pipe=config.data.allow_pipe)
        if rank == 0 or not packed.location.is_remote:
            packed.check_files()
        self.table, self.card = packed.table, packed.card
        kind = request.kind
        asks = f"objective.name: {config.objective.name}" if kind is None else f"kind: {kind}"
        check_target(packed, KINDS[kind].target if kind else config.objective.needs.target, asks)
        if not request.any_classes and self.table.num_classes != config.data.num_classes:
            raise DataError(
                f"{shards}: {self.table.num_classes} classes, but data.num_classes is {config.data.num_classes}; "
                "evaluate on a set that is labelled like the training set"
            )
        self._dataset = EvalDataset(
            ShardReader(self.table, packed.store(config.cluster, 1)),
            eval_transform(config, request.transform or config.data.eval_transform),
            Share(rank, world, micro_batch_size),
            request.sample_ids,
        )
        self.faults = FaultLog(self._dataset.num_samples, config.data.max_bad_sample_rate)

    def __len__(self) -> int:
        """Number of batches, the same on every rank."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        cluster = self._config.cluster
        num_workers = min(cluster.num_workers, len(self) - 1)  # starting a process is not worth it for one batch
        made = loader(self._dataset, range(len(self)), num_workers=num_workers, prefetch_factor=cluster.prefetch_factor)
        with closing(made):
            yield from _accounted(made, self.faults)


class MicroSteps(Sequence[MicroStep]):
    """All micro-batches of a number of steps, in order.

    Args:
        position: samples drawn before the first step.
        num_steps: number of steps.
        batches: size of images, patches and global batch of each step. The one place where they are decided.
        share: of the rank, with b images in a micro-batch of the largest images.
        first_step: the first step's position on the schedule.
    """

    def __init__(self, position: int, num_steps: int, *, batches: Batches, share: Share, first_step: int) -> None:
        self._first_step, self._batches, self._world = first_step, batches, share.world
        self._origin = position - batches.before(first_step)
        self._accumulation = batches.largest // share.world // share.micro_batch_size
        self._length = num_steps * self._accumulation

    @property
    def largest_batch(self) -> int:
        """Pixels of the images of the largest micro-batch."""
        tilings, passes = self._batches.sizes.all, self._world * self._accumulation
        return max(self._batches.of(one) // passes * one.size[0] * one.size[1] for one in tilings)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        step, micro_step = divmod(index, self._accumulation)
        step += self._first_step
        size = self._batches.size(step) // self._world // self._accumulation
        position = self._origin + self._batches.before(step)
        return MicroStep(position, micro_step * size, size, self._batches.sizes.at(step))

    def __iter__(self) -> Iterator[MicroStep]:
        return (self[index] for index in range(self._length))


def _accounted(made: Iterator[Batch | Failure], faults: FaultLog) -> Iterator[Batch]:
    """Yields the batches, logs their faults, and raises errors that occurred in data processes."""
    for batch in made:
        if isinstance(batch, Failure):
            raise batch.error
        faults.add(batch.faults)
        yield batch
