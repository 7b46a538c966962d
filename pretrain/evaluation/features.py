"""Frozen features: what the last layer of a model receives, over all ranks; and the labelled sets that have them.

Legend: B images · N images of a set · D width of the features · M most labels of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.data.batch import Batch
from pretrain.data.storage.classes import load_classes, require_same_classes
from pretrain.data.storage.index import ShardTable, read_labels
from pretrain.distributed.collectives import all_gather_rows
from pretrain.errors import DataError
from pretrain.evaluation.context import Context, Evaluator
from pretrain.models.head_input import HeadInput

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Features:
    """Features of some images with their labels.

    Attributes:
        values: fp32 (N, D).
        labels: int64 (N, M), padded with −1.
        sample_ids: int64 (N,).
        valid: bool (N,), False = padding.
    """

    values: Tensor
    labels: Tensor
    sample_ids: Tensor
    valid: Tensor

    def gathered(self) -> Features:
        """Those of all ranks, concatenated. Collective: equal shapes on all ranks."""
        return Features(
            all_gather_rows(self.values),
            all_gather_rows(self.labels),
            all_gather_rows(self.sample_ids),
            all_gather_rows(self.valid.to(torch.uint8)).bool(),
        )

    def to(self, device: torch.device | str) -> Features:
        """The same on ``device``."""
        return Features(
            self.values.to(device), self.labels.to(device), self.sample_ids.to(device), self.valid.to(device)
        )


class FrozenModel(Protocol):
    """A model that is asked for features: ``evaluation.context.Context``, or one that a stage has read."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a batch on the device; calls ``model``."""
        ...


@torch.no_grad()
def own_features(frozen: FrozenModel, stream: Iterable[Batch]) -> Iterator[Features]:
    """Features of this rank's share, batch by batch, on the device. Collective: at ZeRO-3."""
    with HeadInput(frozen.model) as head_input:
        for batch in stream:
            batch = batch.to(frozen.device)
            frozen.logits(batch)
            yield Features(head_input.take(), batch.labels, batch.sample_ids, batch.valid)


def joined(parts: list[Features]) -> Features:
    """Batches concatenated, without their padding."""
    kept = [(part.values, part.labels, part.sample_ids, part.valid) for part in parts]
    values, labels, sample_ids, valid = (torch.cat(column) for column in zip(*kept, strict=True))
    return Features(values[valid], labels[valid], sample_ids[valid], valid[valid])


def all_features(frozen: FrozenModel, stream: Iterable[Batch]) -> Features:
    """Features of the complete set in the order of the sample ids, on the host of every rank. Collective: yes."""
    found = joined([part.gathered().to("cpu") for part in own_features(frozen, stream)])
    order = torch.argsort(found.sample_ids)
    return Features(found.values[order], found.labels[order], found.sample_ids[order], found.valid[order])


class FeatureSet(Protocol):
    """Features of a packed set, each image once over all ranks.

    Attributes:
        shards: its location, as the user named it.
        table: its index.
    """

    @property
    def shards(self) -> str: ...

    @property
    def table(self) -> ShardTable: ...

    def own(self) -> Iterator[Features]:
        """Those of this rank's share, batch by batch, on the device; all ranks the same number and shape of batches.

        Collective: yes, where the model must be asked.
        """
        ...

    def whole(self) -> Features:
        """All of them in the order of the sample ids, on the host of every rank. Collective: yes."""
        ...

    def only(self, sample_ids: NDArray[np.int64]) -> FeatureSet:
        """The same of some samples."""
        ...


class StreamedSet:
    """Features that the model of a run computes at every pass over the set.

    Raises:
        DataError: the shards are missing or damaged.
    """

    def __init__(
        self,
        config: EvaluationSetConfig,
        context: Context,
        shards: str,
        sample_ids: NDArray[np.int64] | None = None,
    ) -> None:
        self._config, self._context, self.shards = config, context, shards
        self._stream = context.stream(config, shards, sample_ids=sample_ids)

    @property
    def table(self) -> ShardTable:
        """See ``FeatureSet``."""
        return self._stream.table

    def own(self) -> Iterator[Features]:
        """See ``FeatureSet.own``."""
        return own_features(self._context, self._stream)

    def whole(self) -> Features:
        """See ``FeatureSet.whole``."""
        return all_features(self._context, self._stream)

    def only(self, sample_ids: NDArray[np.int64]) -> StreamedSet:
        """See ``FeatureSet.only``."""
        return StreamedSet(self._config, self._context, self.shards, sample_ids)


@dataclass(frozen=True)
class Pair:
    """Two splits of one set, with one label per image.

    Attributes:
        train: what is learned from.
        test: what is classified.
        train_labels: int64 (N,), of the training images in canonical order.
        device: where features are compared.
        rank, world: this rank, of so many.
        say: one line for the user.
    """

    train: FeatureSet
    test: FeatureSet
    train_labels: NDArray[np.int64]
    device: torch.device
    rank: int
    world: int
    say: Callable[[str], None]

    @classmethod
    def of(
        cls,
        train: FeatureSet,
        test: FeatureSet,
        device: torch.device,
        rank: int,
        world: int,
        say: Callable[[str], None],
    ) -> Pair:
        """Checks that the two belong together.

        Raises:
            DataError: a split is empty, an image has several labels or none, or their numbers of classes differ.
        """
        for one in (train, test):
            if not one.table.num_samples:
                raise DataError(f"{one.shards}: holds no image; pack it again, or name another split")
        if test.table.num_classes != train.table.num_classes:
            raise DataError(
                f"{test.shards} has {test.table.num_classes} classes, {train.shards} {train.table.num_classes}; "
                "they must be splits of one set"
            )
        lists = (load_classes(train.table.folder), load_classes(test.table.folder))
        require_same_classes(*lists, where=(train.shards, test.shards))
        single_labels(read_labels(test.table), test.shards)
        labels = single_labels(read_labels(train.table), train.shards)
        return cls(train, test, labels, device, rank, world, say)

    @classmethod
    def in_run(cls, config: EvaluationSetConfig, context: Context) -> Pair:
        """The pair of an evaluation set inside a run; errors as ``of``."""
        assert config.train_set is not None
        train, test = (StreamedSet(config, context, shards) for shards in (config.train_set[0], config.shards))
        return cls.of(
            train, test, context.device, context.session.rank.rank, context.session.rank.world, context.session.say
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.train.table.num_classes

    def require_images(self, least: int) -> None:
        """Refuses a class with fewer training images than ``least``.

        Raises:
            DataError: there is one.
        """
        counts = np.bincount(self.train_labels, minlength=self.num_classes)
        rarest = int(counts.argmin())
        if counts[rarest] < least:
            name = load_classes(self.train.table.folder)[rarest][1]
            raise DataError(
                f"shots: {least} images per class, but {self.train.shards} has {counts[rarest]} of class "
                f"{rarest} ({name}); use fewer shots"
            )


def single_labels(labels: NDArray[np.int64], shards: str) -> NDArray[np.int64]:
    """The one label of each image, (N,) from (N, M).

    Raises:
        DataError: an image has several labels, or none.
    """
    wrong = np.flatnonzero((labels >= 0).sum(1) != 1)
    if len(wrong):
        raise DataError(
            f"{shards}: {len(wrong):,} images, the first is sample {wrong[0]}, do not have exactly one label; "
            "few_shot, knn and logistic need one"
        )
    return labels.max(1) if labels.size else np.zeros(0, dtype=np.int64)


class OnFeatures(Evaluator):
    """An evaluator that learns from the features of one split and classifies those of the other.

    Args:
        config: the settings of its kind.
        pair: the two splits.
    """

    def __init__(self, config: Any, pair: Pair) -> None:
        self._config, self._pair = config, pair

    @classmethod
    def in_run(cls, config: EvaluationSetConfig, context: Context) -> Self:
        """See ``Evaluator``."""
        return cls(config, Pair.in_run(config, context))
