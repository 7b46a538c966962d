"""Loads the resolved config of an earlier run, possibly written by another version of this program."""

from __future__ import annotations

from pathlib import Path

import pretrain
from pretrain.config.loader import WRITTEN_BY, Resolved, load_experiment
from pretrain.errors import ConfigError

# These do not decide the result, so a run can be read and resumed without the values an older version wrote there.
DISPENSABLE = ("cluster", "telemetry", "checkpoint", "evaluation", "guard", "sweep")


def load_saved(path: Path) -> Resolved:
    """The experiment that a ``config.resolved.yaml`` describes.

    If settings that do not decide the result are invalid in this version, their sections take its defaults.

    Raises:
        ConfigError: it cannot be read, or settings that decide the result are invalid in this version; the message
            names them and the version that wrote them.
    """
    try:
        return load_experiment(path)
    except ConfigError as error:
        problem = error
    try:
        return load_experiment(path, without=DISPENSABLE)
    except ConfigError:
        raise ConfigError(
            f"{path} was written by {writer_of(path)} and is not valid in {pretrain.__version__}: {problem}. Use the "
            "version that wrote it, or correct the file"
        ) from problem


def writer_of(path: Path) -> str:
    """The version that wrote a resolved config, if the file records it."""
    try:
        with open(path, errors="replace") as file:
            first = file.readline().strip()
    except OSError:
        return "an unknown version"
    return first.removeprefix(WRITTEN_BY) if first.startswith(WRITTEN_BY) else "an earlier version"
