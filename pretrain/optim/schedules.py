"""Learning-rate schedules: pure functions of the step, so there is no scheduler state to save.

A decay applies to the steps after the warmup and is multiplied by the warmup and cooldown ramps. With a warmup, the
learning rate at step 0 is ``warmup_lr``, 0 by default.

Source: big_vision ``utils.create_learning_rate_schedule``; with ``warmup_prefix: false`` and ``per_epoch`` timm's
``CosineLRScheduler`` and ``PolyLRScheduler``, as DeiT uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pretrain.config.duration import Duration
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.optim.schedules import EndingScheduleConfig, RsqrtConfig

Schedule = Callable[[int], float]


Decay = Callable[[float], float]


@dataclass(frozen=True)
class Run:
    """The inputs of a decay besides its own settings; steps count from the start of the decay.

    Attributes:
        base: peak learning rate.
        total: steps of the decay if it ends with the run, at least 1.
        steps: converts a duration to steps; not rounded if the rate changes per epoch.
    """

    base: float
    total: float
    steps: Callable[[Duration], float]


def polynomial(config: EndingScheduleConfig, run: Run, power: float) -> Decay:
    """``end + (base - end) × (share of the run that is left) ** power``."""

    def at(step: float) -> float:
        left = 1.0 - min(1.0, max(0.0, step / run.total))
        return config.end_lr + (run.base - config.end_lr) * left**power

    return at


def cosine(config: EndingScheduleConfig, run: Run) -> Decay:
    """Decays from ``base`` to ``end_lr`` along half a cosine."""

    def at(step: float) -> float:
        progress = min(1.0, max(0.0, step / run.total))
        return config.end_lr + (run.base - config.end_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return at


def rsqrt(config: RsqrtConfig, run: Run) -> Decay:
    """``base / sqrt(1 + (step + shift) / timescale)``; a warmup ramps to ``base / sqrt(1 + shift / timescale)``.

    Source: Scaling ViT (2106.04560), section 3.5; big_vision ``utils.create_learning_rate_schedule``.
    """
    timescale, shift = max(1, run.steps(config.timescale)), run.steps(config.shift)
    return lambda step: run.base / math.sqrt(1.0 + (max(0.0, step) + shift) / timescale)


DECAYS: dict[str, Callable[[Any, Run], Decay]] = {
    "linear": lambda config, run: polynomial(config, run, 1.0),
    "polynomial": lambda config, run: polynomial(config, run, config.power),
    "cosine": cosine,
    "rsqrt": rsqrt,
    "constant": lambda config, run: lambda step: run.base,
}


def build_schedule(experiment: Experiment) -> Schedule:
    """The learning rate at each step in [0, num_steps]; the update from step s to s + 1 uses ``schedule(s)``."""
    config, base = experiment.optim.schedule, experiment.optim.lr
    # a per-epoch rate counts in epochs, which are seldom whole numbers of steps
    steps: Callable[[Duration], float] = experiment.exact_steps if config.per_epoch else experiment.steps
    total, warmup, cooldown = steps(experiment.duration), steps(config.warmup), steps(config.cooldown)
    before = 0 if config.decays_from_start else warmup  # steps before the decay starts
    held = steps(config.end_hold) if isinstance(config, EndingScheduleConfig) else 0
    decay = DECAYS[config.name](config, Run(base, max(1, total - before - held), steps))

    def schedule(step: float) -> float:
        up = min(1.0, step / warmup) if warmup else 1.0
        down = min(1.0, max(0, total - step) / cooldown) if cooldown else 1.0
        peak = base if up < 1.0 and config.decays_from_start else decay(step - before)
        return (peak * up + config.warmup_lr * (1.0 - up)) * down

    if not config.per_epoch:
        return schedule
    steps_per_epoch = experiment.steps_per_epoch
    return lambda step: schedule(_epoch(step, steps_per_epoch) * steps_per_epoch)


def _epoch(step: int, steps_per_epoch: float) -> int:
    """The epoch in which a step begins; a step on the border belongs to the next one, regardless of rounding."""
    return math.floor(step / steps_per_epoch + 1e-9)
