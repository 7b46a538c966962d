"""Locates the weights that a stage uses, in a run, a checkpoint or a file of any known format, and their experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pretrain.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.config.schema.experiment import Experiment
    from pretrain.data.storage.index import ShardTable
    from pretrain.models.metadata import Task, WeightsMetadata

RESOLVED_CONFIG = "config.resolved.yaml"


def load_source(
    source: Path, weights: Literal["raw", "ema"], say: Callable[[str], None]
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads tensors, on the CPU, and their metadata.

    Args:
        source: a run folder, a checkpoint, or a file or folder of any format that is read.
        weights: of a run or checkpoint, the raw or the EMA weights.
        say: called with each line for the user.

    Raises:
        CheckpointError: no weights there, or damaged ones. SetupError: no such path.
    """
    from pretrain.models.exchange.formats import load_any

    path = weights_path(source, weights, say)
    state, metadata = load_any(path, say=say)
    say(f"weights from {path}")
    made_by = experiment_of(path)
    return state, metadata if made_by is None else _completed(metadata, made_by)


def _completed(metadata: WeightsMetadata, made_by: Experiment) -> WeightsMetadata:
    """With what the headers of older weights lack and the config beside them states."""
    stated = {
        "eval_transform": made_by.data.eval_transform,
        "objective": made_by.objective.name,
        "activation": made_by.objective.needs.activation if made_by.objective.needs.has_accuracy else None,
    }
    return metadata.model_copy(update={name: stated[name] for name in stated if getattr(metadata, name) is None})


def task_of(source: Path, weights: Literal["raw", "ema"]) -> Task:
    """The task that the weights were trained for; errors as ``load_source``. Reads no tensors."""
    from pretrain.models.exchange.formats import task_of_weights

    return task_of_weights(weights_path(source, weights, lambda line: None))


def weights_path(source: Path, weights: Literal["raw", "ema"], say: Callable[[str], None]) -> Path:
    """The weights file, or folder of a model, that ``source`` means; errors as ``load_source``."""
    from pretrain.engine.checkpoint_folder import weights_file
    from pretrain.models.exchange.formats import is_model_folder
    from pretrain.models.exchange.hub import local

    source = local(source)
    return source if is_model_folder(source) else weights_file(source, weights, say)


def experiment_of(weights: Path) -> Experiment | None:
    """The experiment that trained a checkpoint's weights file; None for any other file."""
    from pretrain.config.loader import load_saved

    config = weights.parent / RESOLVED_CONFIG
    return load_saved(config).experiment if config.is_file() else None


def warn_of_overlap(train: ShardTable, test: ShardTable, what: str, say: Callable[[str], None]) -> None:
    """Warns if images of ``test`` are also in ``train``, compared by their bytes.

    Args:
        train, test: two sets.
        what: completes the sentence "N of the M images of TEST are also …".
        say: called with each line for the user.

    Raises:
        DataError: a record file is missing or stale.
    """
    from pretrain.data.storage.index import num_in_common

    if common := num_in_common(train, test):
        say(
            f"warning: {common:,} of the {test.num_samples:,} images of {test.folder} are also {what}: the figures say "
            "little about new images"
        )


def warn_of_trained_images(
    source: Path, weights: Literal["raw", "ema"], test: ShardTable, say: Callable[[str], None]
) -> None:
    """Warns if weights were trained on images of ``test``, as far as their training sets can be read from here."""
    from pretrain.data.storage.packed_set import open_packed

    experiment = experiment_of(weights_path(source, weights, lambda line: None))
    if experiment is None:
        return
    for trained_on in experiment.data.sources:
        try:
            packed = open_packed(trained_on.shards, experiment.cluster, allow_pipe=False)
            warn_of_overlap(packed.table, test, f"in {packed.location}, on which {source} was trained", say)
        except UserError:  # the training set is not on this machine: nothing can be compared
            continue
