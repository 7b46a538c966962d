"""Images that a test set has in common with what was trained on: said, never passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.data.storage.index import ShardTable


def warn_of_overlap(train: ShardTable, test: ShardTable, what: str, say: Callable[[str], None]) -> None:
    """Warns where images of ``test`` are, by their bytes, also in ``train``.

    Args:
        train, test: two sets.
        what: the rest of the sentence "N of the M images of TEST are also …".
        say: one line for the user.

    Raises:
        DataError: a record file is missing or stale.
    """
    from pretrain.data.storage.overlap import num_in_common

    if common := num_in_common(train, test):
        say(
            f"warning: {common:,} of the {test.num_samples:,} images of {test.folder} are also {what}: the figures say "
            "little about new images"
        )


def warn_of_trained_images(
    source: Path, weights: Literal["raw", "ema"], test: ShardTable, say: Callable[[str], None]
) -> None:
    """Warns where weights were trained on images of ``test``, as far as that can be known from here."""
    from pipelines.weights.load import experiment_of, weights_path
    from pretrain.data.sources import open_packed

    experiment = experiment_of(weights_path(source, weights, lambda line: None))
    if experiment is None:
        return
    for trained_on in experiment.data.sources:
        try:
            packed = open_packed(trained_on.shards, experiment.cluster, allow_pipe=False)
            warn_of_overlap(packed.table, test, f"in {packed.location}, on which {source} was trained", say)
        except UserError:  # the training set cannot be had from here
            continue
