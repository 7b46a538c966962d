"""Objectives by name: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable

from pretrain.config.schema import ObjectiveConfig
from pretrain.errors import ConfigError
from pretrain.objectives.protocol import Objective
from pretrain.objectives.sigmoid import Sigmoid
from pretrain.objectives.softmax import Softmax

OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "softmax": lambda config: Softmax(config.label_smoothing),
    "sigmoid": lambda config: Sigmoid(config.reduction),
}


def build_objective(config: ObjectiveConfig, num_classes: int) -> Objective:
    """The objective that ``config`` names, for a head of ``num_classes``.

    Raises:
        ConfigError: no such objective, or one that has no meaning for so few classes.
    """
    if config.name not in OBJECTIVES:
        raise ConfigError(f"objective.name: unknown objective {config.name!r}; known are {', '.join(OBJECTIVES)}")
    if config.name == "softmax" and num_classes < 2:
        raise ConfigError(f"objective.name: softmax over {num_classes} class is always 0; use sigmoid or more classes")
    return OBJECTIVES[config.name](config)
