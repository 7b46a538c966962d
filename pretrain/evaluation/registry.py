"""Evaluators by ``kind``: a new one is one class and one row here."""

from __future__ import annotations

from pretrain.data.storage.index import num_in_common
from pretrain.data.storage.location import Location
from pretrain.data.storage.packed_set import open_packed
from pretrain.evaluation.classification import Accuracy, MappedAccuracy, MultiLabel
from pretrain.evaluation.context import Context, Evaluator
from pretrain.evaluation.dense import MaskOverlap, VectorErrors
from pretrain.evaluation.features import OnFeatures
from pretrain.evaluation.knn import NearestNeighbours
from pretrain.evaluation.linear import FewShot, LogisticProbe

MOST_COMPARED = 2_000_000  # training images whose checksums are read for a warning

PROBES: dict[str, type[OnFeatures]] = {
    "few_shot": FewShot,
    "knn": NearestNeighbours,
    "logistic": LogisticProbe,
}
EVALUATORS: dict[str, type[Evaluator]] = {
    "accuracy": Accuracy,
    "label_map": MappedAccuracy,
    "multilabel": MultiLabel,
    "regression": VectorErrors,
    "segmentation": MaskOverlap,
    **PROBES,
}


def build_evaluators(context: Context) -> dict[str, Evaluator]:
    """Name of the set → what measures it, for all sets of the experiment.

    Raises:
        DataError: a set is missing, damaged, or not what its kind needs.
    """
    sets = context.experiment.evaluation.sets
    if context.session.rank.is_main:
        _warn_of_overlap(context)
    return {name: EVALUATORS[config.kind].in_run(config, context) for name, config in sets.items()}


def _warn_of_overlap(context: Context) -> None:
    """Warns of images that are also trained on, where both sets are in folders, so that checking is cheap."""
    experiment = context.experiment
    for source in experiment.data.sources:
        if Location.parse(source.shards).is_remote or source.num_samples > MOST_COMPARED:
            continue
        trained_on = open_packed(source.shards, experiment.cluster).table
        for name, chosen in experiment.evaluation.sets.items():
            if Location.parse(chosen.shards).is_remote:
                continue
            table = open_packed(chosen.shards, experiment.cluster).table
            if common := num_in_common(trained_on, table):
                context.session.say(
                    f"warning: {common:,} of the {table.num_samples:,} images of {chosen.shards} "
                    f"(evaluation.sets.{name}) are also in {source.shards}, which is trained on: {name} tells little "
                    "about new images"
                )
