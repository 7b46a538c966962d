"""Learning-rate schedules: pure functions of the step, so there is no scheduler state to save or to lose.

A decay works on the steps after the warmup; the ramps of warmup and cooldown multiply it. With a warmup the learning
rate at step 0 is ``warmup_lr``, 0 by default.

Source: big_vision ``utils.create_learning_rate_schedule``; with ``warmup_prefix: false`` and ``per_epoch`` timm's
``CosineLRScheduler`` and ``PolyLRScheduler``, as DeiT uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.config.duration import Duration
from pretrain.config.schema.experiment import Experiment

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Decay:
    """What a decay may look at; steps count from the end of the warmup.

    Attributes:
        base, end: peak and last learning rate.
        total: steps that the decay takes, at least 1.
        power: of the polynomial.
        timescale, shift: of rsqrt, in steps.
    """

    base: float
    end: float
    total: float
    power: float
    timescale: float
    shift: float

    def polynomial(self, power: float, step: float) -> float:
        """``end + (base - end) × (share of the run that is left) ** power``."""
        left = 1.0 - min(1.0, max(0.0, step / self.total))
        return self.end + (self.base - self.end) * left**power

    def cosine(self, step: float) -> float:
        """From ``base`` to ``end`` along half a cosine."""
        progress = min(1.0, max(0.0, step / self.total))
        return self.end + (self.base - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def rsqrt(self, step: float) -> float:
        """``base / sqrt(1 + (step + shift) / timescale)``; a warmup ramps to ``base / sqrt(1 + shift / timescale)``.

        Source: Scaling ViT (2106.04560), section 3.5; big_vision ``utils.create_learning_rate_schedule``.
        """
        return self.base / math.sqrt(1.0 + (max(0.0, step) + self.shift) / self.timescale)


DECAYS: dict[str, Callable[[Decay, float], float]] = {
    "linear": lambda decay, step: decay.polynomial(1.0, step),
    "polynomial": lambda decay, step: decay.polynomial(decay.power, step),
    "cosine": lambda decay, step: decay.cosine(step),
    "rsqrt": lambda decay, step: decay.rsqrt(step),
    "constant": lambda decay, step: decay.base,
}


def build_schedule(experiment: Experiment) -> Schedule:
    """The learning rate at each step in [0, num_steps]; the update from step s to s + 1 uses ``schedule(s)``."""
    config = experiment.optim.schedule
    # a rate per epoch counts in epochs, which are seldom whole steps
    steps: Callable[[Duration], float] = experiment.exact_steps if config.per_epoch else experiment.steps
    total, warmup, cooldown = steps(experiment.duration), steps(config.warmup), steps(config.cooldown)
    before = warmup if config.warmup_prefix else 0  # steps that the decay does not count
    decay = Decay(
        base=experiment.optim.lr,
        end=config.end_lr,
        total=max(1, total - before - steps(config.end_hold)),
        power=config.power,
        timescale=max(1, steps(config.timescale)),
        shift=steps(config.shift),
    )
    at = DECAYS[config.name]

    def schedule(step: float) -> float:
        up = min(1.0, step / warmup) if warmup else 1.0
        down = min(1.0, max(0, total - step) / cooldown) if cooldown else 1.0
        peak = decay.base if up < 1.0 and not config.warmup_prefix else at(decay, step - before)
        return (peak * up + config.warmup_lr * (1.0 - up)) * down

    if not config.per_epoch:
        return schedule
    steps_per_epoch = experiment.steps_per_epoch
    return lambda step: schedule(_epoch(step, steps_per_epoch) * steps_per_epoch)


def _epoch(step: int, steps_per_epoch: float) -> int:
    """The epoch that a step begins in; a step on the border belongs to the next, whatever the division rounds to."""
    return math.floor(step / steps_per_epoch + 1e-9)
