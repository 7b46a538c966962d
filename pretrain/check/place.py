"""Checks that the run folder can be written, without writing anything. Does not import torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError

LONGEST_BELOW = 64  # characters of the longest path in a run folder: checkpoints/step-00000000.tmp/slices/…


def report_place(experiment: Experiment) -> list[str]:
    """Returns no lines, since only problems are reported.

    Raises:
        ConfigError: the run folder cannot be made, or a package is missing that a setting needs.
    """
    _check_folder(Path(experiment.output_dir), experiment.name)
    if experiment.telemetry.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "telemetry.wandb: the package wandb is not installed; pip install 'vit-pretrain[wandb]', or remove the "
            "setting"
        )
    return []


def _check_folder(parent: Path, name: str) -> None:
    run = parent / name
    if run.exists() and not run.is_dir():
        raise ConfigError(f"name: {run} is a file; choose another name or output_dir")
    above = Path(os.path.abspath(run))
    longest = len(os.fsencode(above)) + LONGEST_BELOW
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"output_dir: {above} is not a folder, so {run} cannot be made in it; choose another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {above} cannot be written to, so {run} cannot be made; choose another")
    most = os.pathconf(above, "PC_PATH_MAX")
    if longest > most:
        raise ConfigError(f"output_dir: {run}: paths in it would have up to {longest} bytes, and {most} are possible")
