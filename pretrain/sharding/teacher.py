"""The memory of the frozen teacher of a distillation, which every rank holds unsharded. Does not import torch.

Its architecture is read from a run folder, a checkpoint or a weights file of ours; of other libraries' weights and of
places that are not here it is unknown, and the memory is not counted.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.config.loader import load_saved
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.protocol import FP32
from pretrain.models.families.registry import cost_is_known, num_parameters
from pretrain.models.metadata import described_in_file

_RESOLVED = "config.resolved.yaml"


def teacher_bytes(experiment: Experiment) -> int | None:
    """Bytes of the teacher's weights, which are fp32; 0: there is none, None: its size is unknown here."""
    source = experiment.objective.teacher_weights
    if source is None:
        return 0
    model = _model_of(Path(source))
    if model is None or not cost_is_known(model):
        return None
    classes = experiment.num_outputs if experiment.objective.needs.teacher == "logits" else 1
    return FP32 * num_parameters(model, classes)


def not_counted(experiment: Experiment) -> list[str]:
    """A line about a teacher whose size is unknown."""
    if teacher_bytes(experiment) is not None:
        return []
    source = experiment.objective.teacher_weights
    return [f"the memory of the teacher is not counted: {source} is not here, or of another library"]


def _model_of(path: Path) -> ModelConfig | None:
    if path.is_file():
        about = described_in_file(path)
        return None if about is None else about.model
    try:
        return load_saved(path / _RESOLVED).experiment.model if (path / _RESOLVED).is_file() else None
    except ConfigError:  # of an older version
        return None
