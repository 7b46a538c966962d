"""Learning-rate schedules: pure functions of the step, so there is no scheduler state to save or to lose.

Source: big_vision ``utils.create_learning_rate_schedule``: decay over the steps after the warmup, then multiplied by
``min(1, step / warmup)``; so the learning rate at step 0 is 0 where there is a warmup.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pretrain.config.schema import Experiment

Schedule = Callable[[int], float]


def linear(progress: float, base: float, end: float) -> float:
    """From ``base`` at progress 0 to ``end`` at progress 1 on a straight line."""
    return end + (base - end) * (1.0 - progress)


def cosine(progress: float, base: float, end: float) -> float:
    """From ``base`` to ``end`` along half a cosine."""
    return end + (base - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float, base: float, end: float) -> float:
    """``base`` throughout."""
    return base


DECAYS: dict[str, Callable[[float, float, float], float]] = {"linear": linear, "cosine": cosine, "constant": constant}


def build_schedule(experiment: Experiment) -> Schedule:
    """The learning rate at each step in [0, num_steps]; the update from step s to s + 1 uses ``schedule(s)``."""
    total, config = experiment.num_steps, experiment.optim.schedule
    warmup, base, decay = experiment.steps(config.warmup), experiment.optim.lr, DECAYS[config.name]

    def schedule(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / max(1, total - warmup)))
        ramp = min(1.0, step / warmup) if warmup else 1.0
        return decay(progress, base, config.end_lr) * ramp

    return schedule
