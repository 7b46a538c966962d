"""Sampling by class (``data.sampling``): reads the class of each image, and refuses what has none."""

from __future__ import annotations

import numpy as np

from pretrain.config.schema.data import IN_WORDS
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.by_class import OrderByClass
from pretrain.data.order.mixture import Selection
from pretrain.data.storage.index import read_labels
from pretrain.data.storage.location import Location
from pretrain.data.storage.packed_set import PackedSet
from pretrain.errors import ConfigError


def check_sampling(config: Experiment) -> None:
    """Refuses a sampling by class that cannot work, as far as the config alone can tell.

    Raises:
        ConfigError: the set is not in a local folder, or its targets are not class labels.
    """
    sampling, target = config.data.sampling, config.objective.needs.target
    if sampling == "natural":
        return
    if target not in (None, "labels"):
        raise ConfigError(
            f"data.sampling: {sampling} draws by class, but objective.name: {config.objective.name} learns from "
            f"{IN_WORDS[target]}; use natural"
        )
    for source in config.data.sources:
        location = Location.parse(source.shards)
        if location.is_remote:
            raise ConfigError(
                f"data.sampling: {sampling} reads the class of every image before the first step, and then images at "
                f"random from all shards, for which {location} is too far away; copy the set into a local folder, or "
                "use natural"
            )


def order_by_class(config: Experiment, packed: PackedSet, selection: Selection, lanes: int) -> OrderByClass:
    """The order in which the selected samples of a set are drawn by class; reads every record file.

    Raises:
        ConfigError: the images of the set have no label or several. DataError: a record file is missing or stale.
    """
    sampling, table = config.data.sampling, packed.table
    assert sampling != "natural", "the natural order does not look at labels"
    if table.target != "labels" or table.max_labels != 1:
        found = f"up to {table.max_labels} labels, or none" if table.target == "labels" else IN_WORDS[table.target]
        raise ConfigError(
            f"data.sampling: {sampling} needs one class per image, but the images of {packed.location} have {found}; "
            "use natural (for several labels, objective.pos_weight: balanced weighs rare classes more)"
        )
    chosen = selection.sample_ids(np.arange(int(selection.sizes.sum()), dtype=np.int64))
    labels = read_labels(table)[chosen, 0]
    return OrderByClass(labels, sampling, seed=config.seed, global_batch_size=config.batches.unit, lanes=lanes)


def in_words(order: OrderByClass, num_classes: int) -> str:
    """The draws of each class in an epoch, in one line, and how many of all classes have no image."""
    present = np.flatnonzero(order.counts)
    counts, quotas = order.counts[present], order.quotas[present]
    rarest, absent = int(np.argmin(counts)), num_classes - len(present)
    draws = f"{quotas.min():,}" if quotas.min() == quotas.max() else f"{quotas.min():,} to {quotas.max():,}"
    each = quotas[rarest] / counts[rarest]
    none = f"; {absent:,} classes have no image and are not drawn" if absent else ""
    return (
        f"an epoch draws {len(present):,} classes of {counts.min():,} to {counts.max():,} images {draws} times each, "
        f"the images of the rarest {each:,.3g} times each{none}"
    )
