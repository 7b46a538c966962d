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
    state, metadata = load_any(path)
    say(f"weights from {path}")
    if metadata.eval_transform is None and (made_by := experiment_of(path)) is not None:
        metadata = metadata.model_copy(update={"eval_transform": made_by.data.eval_transform})
    return state, metadata


def task_of(source: Path, weights: Literal["raw", "ema"]) -> Task:
    """The task that the weights were trained for; errors as ``load_source``. Reads the header of our own files only."""
    from pretrain.models.interop import read_metadata

    path = weights_path(source, weights, lambda line: None)
    metadata = read_metadata(path) if path.suffix == ".safetensors" else None
    return "classification" if metadata is None else metadata.task


def weights_path(source: Path, weights: Literal["raw", "ema"], say: Callable[[str], None]) -> Path:
    """The weights file, or folder of a model, that ``source`` means; errors as ``load_source``."""
    from pretrain.engine.checkpoint_folder import weights_file
    from pretrain.models.exchange.formats import is_model_folder

    return source if is_model_folder(source) else weights_file(source, weights, say)


def experiment_of(weights: Path) -> Experiment | None:
    """The experiment that trained a checkpoint's weights file; None for any other file."""
    from pretrain.config.saved import load_saved

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
