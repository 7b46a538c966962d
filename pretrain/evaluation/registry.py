"""Evaluators by ``kind``: a new one is one class and one row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.data.storage.index import num_in_common
from pretrain.data.storage.location import Location
from pretrain.data.storage.packed_set import open_packed
from pretrain.evaluation.classification import Accuracy, MultiLabel
from pretrain.evaluation.context import Context
from pretrain.evaluation.features import Pair
from pretrain.evaluation.few_shot import FewShot
from pretrain.evaluation.knn import NearestNeighbours
from pretrain.evaluation.logistic import LogisticProbe
from pretrain.evaluation.regression import VectorErrors
from pretrain.evaluation.segmentation import MaskOverlap

MOST_COMPARED = 2_000_000  # training images whose checksums are read for a warning


class Evaluator(Protocol):
    """A measurement of a model on one set."""

    def __call__(self) -> dict[str, float]:
        """Registered metric → value, the same on every rank. Collective: yes."""
        ...


PROBES: dict[str, Callable[[EvaluationSetConfig, Pair], Evaluator]] = {
    "few_shot": FewShot,
    "knn": NearestNeighbours,
    "logistic": LogisticProbe,
}


def _probe(config: EvaluationSetConfig, context: Context) -> Evaluator:
    return PROBES[config.kind](config, Pair.in_run(config, context))


EVALUATORS: dict[str, Callable[[EvaluationSetConfig, Context], Evaluator]] = {
    "accuracy": Accuracy,
    "label_map": Accuracy,
    "multilabel": MultiLabel,
    "regression": VectorErrors,
    "segmentation": MaskOverlap,
    **dict.fromkeys(PROBES, _probe),
}


def build_evaluators(context: Context) -> dict[str, Evaluator]:
    """Name of the set → what measures it, for all sets of the experiment.

    Raises:
        DataError: a set is missing, damaged, or not what its kind needs.
    """
    sets = context.experiment.evaluation.sets
    if context.session.rank.is_main:
        _warn_of_overlap(context)
    return {name: EVALUATORS[config.kind](config, context) for name, config in sets.items()}


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
