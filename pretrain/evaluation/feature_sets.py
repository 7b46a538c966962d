"""Labelled sets seen through a frozen model, and the pair of them that a probe learns from and is judged on.

Legend: N images · D width of the features · M most labels of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.data.storage.classes import load_classes, require_same_classes
from pretrain.data.storage.index import ShardTable, read_labels
from pretrain.errors import DataError
from pretrain.evaluation.context import Context
from pretrain.evaluation.features import Features, all_features, own_features


class FeatureSet(Protocol):
    """Features of a packed set, each image once over all ranks.

    Attributes:
        shards: where it lies, as the user named it.
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
    """Features that the model of a run makes anew whenever they are asked for.

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
        assert config.train_shards is not None
        train, test = (StreamedSet(config, context, shards) for shards in (config.train_shards, config.shards))
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
