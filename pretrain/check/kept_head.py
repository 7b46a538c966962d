"""Check of a head that is kept from given weights: its outputs must be the classes of the data. No torch."""

from __future__ import annotations

from pathlib import Path

from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.classes import named_outputs, require_same_outputs
from pretrain.data.storage.packed_set import PackedSet
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.metadata import outputs_in_file

_WEIGHTS = "weights.safetensors"


def check_head(source: Path, experiment: Experiment, trained: PackedSet) -> None:
    """Compares the classes of a head that is kept with the data's; the run does so for other libraries' weights.

    Raises:
        ConfigError: they differ.
    """
    if experiment.objective.needs.target != "labels":
        return
    outputs = outputs_in_file(_weights_file(source))
    if outputs is None or not outputs[-1]:
        return
    try:
        require_same_outputs(named_outputs(*outputs, trained.classes), trained.classes)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _weights_file(source: Path) -> Path:
    """The weights file of a checkpoint, or of the newest complete one of a run; a file is itself."""
    if source.is_file():
        return source
    complete = sorted(marker.parent for marker in source.glob("checkpoints/step-*/COMPLETE.json"))
    return (complete[-1] if complete else source) / _WEIGHTS
