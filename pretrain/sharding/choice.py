"""Chooses the sharding of an experiment, and finds alternatives. Does not import torch."""

from __future__ import annotations

from pretrain.config import combinations
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError
from pretrain.sharding.protocol import Sharding
from pretrain.sharding.replicated import DDP, ZERO_0
from pretrain.sharding.zero import Zero

# Backend → its shardings, the least sharded first. ``cluster.zero_stage`` is the index; a backend with only one
# sharding ignores it.
SHARDINGS: dict[str, tuple[Sharding, ...]] = {
    "deepspeed": (ZERO_0, Zero(1), Zero(2), Zero(3)),
    "accelerate": (DDP,),
}


def sharding_of(experiment: Experiment, entry_backend: str = "deepspeed") -> Sharding:
    """The sharding that an experiment trains with.

    Args:
        experiment: the settings.
        entry_backend: the backend that ``cluster.backend: auto`` means in the calling script.
    """
    possible = SHARDINGS[backend_of(experiment, entry_backend)]
    return possible[min(experiment.cluster.zero_stage, len(possible) - 1)]


def backend_of(experiment: Experiment, entry_backend: str) -> str:
    """The backend that an experiment trains with; arguments as ``sharding_of``."""
    chosen = experiment.cluster.backend
    return entry_backend if chosen == "auto" else chosen


def refusals(experiment: Experiment, sharding: Sharding) -> list[tuple[str, str]]:
    """(key, reason) of every setting of an experiment that does not work with a sharding."""
    return combinations.refusals(
        sharding=sharding.name,
        precision=experiment.precision,
        compile=experiment.cluster.compile,
        activation_checkpointing=experiment.cluster.activation_checkpointing,
        needs_unsharded=experiment.optim.needs_unsharded,
        optimizer=experiment.optim.name,
    )


def require_supported(experiment: Experiment, sharding: Sharding) -> None:
    """Raises ConfigError if the experiment has a setting that does not work with the sharding."""
    problems = [f"{key}: {reason}" for key, reason in refusals(experiment, sharding)]
    if problems:
        raise ConfigError("\n".join(problems))


def possible_shardings(experiment: Experiment, entry_backend: str = "deepspeed") -> list[Sharding]:
    """The shardings of the experiment's backend that work with its other settings, least sharded first."""
    return [one for one in SHARDINGS[backend_of(experiment, entry_backend)] if not refusals(experiment, one)]


def more_sharded(experiment: Experiment, sharding: Sharding) -> Sharding | None:
    """The next sharding that needs less memory and works with the other settings, or None."""
    return min(
        (one for one in _supported(experiment) if one.stage > sharding.stage), key=lambda one: one.stage, default=None
    )


def least_sharded(experiment: Experiment) -> Sharding | None:
    """The least sharded option of any backend that works with the other settings, or None."""
    return min(_supported(experiment), key=lambda one: one.stage, default=None)


def _supported(experiment: Experiment) -> list[Sharding]:
    return [one for possible in SHARDINGS.values() for one in possible if not refusals(experiment, one)]
