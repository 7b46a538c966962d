"""The predictions of a classifier for a packed split, each image once on any number of ranks.

Legend: N images · K classes · M most labels of an image.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.rows import rows_of_set
from pipelines.weights.classifier import Classifier
from pretrain.data.batch import Batch
from pretrain.data.ledger import Ledger
from pretrain.data.storage.packed_set import PackedSet
from pretrain.distributed.rank import Rank
from pretrain.errors import DataError
from pretrain.evaluation.class_map import ClassMap

TOP = 5
MAX_SCORES_BYTES = 4 << 30


@dataclass(frozen=True)
class Outcomes:
    """Arrays with a row per image, in the set's order.

    Attributes:
        sample_ids: int64 (N,).
        labels: int64 (N, M), padded with -1.
        best: int64 (N, min(5, K)), the most probable classes, the best first.
        confidence: float32 (N,), the probability of the best one.
        scores: float32 (N, K), the logit of every class; (N, 0) for sets with one label per image.
    """

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    best: NDArray[np.int64]
    confidence: NDArray[np.float32]
    scores: NDArray[np.float32]

    @property
    def hits(self) -> NDArray[np.bool_]:
        """(N,), True = the best class is among the image's labels."""
        return (self.best[:, :1] == self.labels).any(1)

    @property
    def hits_in_best(self) -> NDArray[np.bool_]:
        """(N,), True = one of the best five classes is among the image's labels."""
        return (self.best[:, :, None] == self.labels[:, None, :]).any((1, 2))

    def with_labels(self, labels: NDArray[np.int64]) -> Outcomes:
        """The same predictions with other labels; only the images that have one.

        Args:
            labels: of every sample of the set, (N of the set, M), padded with -1.
        """
        other = replace(self, labels=labels[self.sample_ids])
        return other.select(np.any(other.labels >= 0, axis=1))

    def select(self, rows: NDArray[np.bool_]) -> Outcomes:
        """The outcomes of some images."""
        return Outcomes(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def outcomes_of(
    args: argparse.Namespace,
    packed: PackedSet,
    classifier: Classifier,
    rank: Rank,
    class_map: ClassMap | None = None,
) -> tuple[Outcomes, Ledger]:
    """Runs the model on every image of a set. Collective: yes; every rank returns all outcomes.

    Args:
        args: see ``rows_of_set``.
        packed: the set.
        classifier: the model.
        rank: this process.
        class_map: the model's outputs for each class of the set; None: output k is class k.

    Returns:
        The outcomes, and the ledger of the images.

    Raises:
        DataError: a shard cannot be read, or not one image, or the scores do not fit into memory.
    """
    table = packed.table
    keep_scores = table.max_labels > 1  # mean average precision needs every logit
    if keep_scores and (needed := 4 * table.num_samples * table.num_classes) > MAX_SCORES_BYTES:
        raise DataError(
            f"{table.folder}: the scores of {table.num_samples:,} images × {table.num_classes:,} classes need "
            f"{needed / 2**30:.1f} GiB, the limit is {MAX_SCORES_BYTES >> 30}; evaluate a smaller set"
        )
    chosen = None if class_map is None else class_map.to(classifier.device)
    arrays, ledger = rows_of_set(
        args, packed, classifier.transform, rank, lambda batch: _outcome(classifier, batch, chosen, keep_scores)
    )
    return Outcomes(*arrays), ledger


def _outcome(
    classifier: Classifier, batch: Batch, class_map: ClassMap | None, keep_scores: bool
) -> list[NDArray[np.generic]]:
    """The rows of one micro-batch without its padding, in the order of the fields of ``Outcomes``."""
    logits = classifier.outputs(batch.images)
    if class_map is not None:
        logits = class_map(logits)
    probabilities = classifier.activated(logits)
    values, indices = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1)
    kept = logits if keep_scores else logits[:, :0]
    tensors = [batch.sample_ids, batch.labels, indices, values[:, 0], kept]
    return [tensor.cpu()[batch.valid].numpy() for tensor in tensors]
