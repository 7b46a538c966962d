"""Checks the weights that a run starts from, before it starts."""

from __future__ import annotations

from pathlib import Path

from pretrain.config.saved import load_saved
from pretrain.config.schema.model import ModelConfig
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import require_same
from pretrain.models.header import model_in_file


def check_weights(source: Path, model: ModelConfig) -> None:
    """Checks that our own weights fit the model's architecture; the run checks those of other libraries.

    Raises:
        ConfigError: they do not.
    """
    theirs = model_in_file(source) if source.is_file() else _model_of_run(source)
    if theirs is None:
        return
    try:
        require_same(theirs, model)
    except CheckpointError as error:
        raise ConfigError(f"init.from: {source}: {error}") from error


def _model_of_run(folder: Path) -> ModelConfig | None:
    try:
        return load_saved(RunFolder(folder).config).experiment.model
    except ConfigError:  # another library's folder, or an older version: the run checks the weights themselves
        return None
