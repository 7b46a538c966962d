"""Learning-rate schedules: pure functions of the step, so there is no scheduler state to save or to lose.

A decay works on the steps after the warmup; the ramps of warmup and cooldown multiply it. With a warmup the learning
rate at step 0 is 0.

Source: big_vision ``utils.create_learning_rate_schedule``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.config.schema.experiment import Experiment

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Decay:
    """What a decay may look at; steps count from the end of the warmup.

    Attributes:
        base, end: peak and last learning rate.
        total: steps from the warmup to the end of the run, at least 1.
        power: of the polynomial.
        timescale, shift: of rsqrt, in steps.
    """

    base: float
    end: float
    total: int
    power: float
    timescale: int
    shift: int

    def polynomial(self, power: float, step: int) -> float:
        """``end + (base - end) × (share of the run that is left) ** power``."""
        left = 1.0 - min(1.0, max(0.0, step / self.total))
        return self.end + (self.base - self.end) * left**power

    def cosine(self, step: int) -> float:
        """From ``base`` to ``end`` along half a cosine."""
        progress = min(1.0, max(0.0, step / self.total))
        return self.end + (self.base - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def rsqrt(self, step: int) -> float:
        """``base / sqrt(1 + (step + shift) / timescale)``. Source: Scaling ViT (2106.04560), section 3.5."""
        return self.base / math.sqrt(1.0 + max(0, step + self.shift) / self.timescale)


DECAYS: dict[str, Callable[[Decay, int], float]] = {
    "linear": lambda decay, step: decay.polynomial(1.0, step),
    "polynomial": lambda decay, step: decay.polynomial(decay.power, step),
    "cosine": lambda decay, step: decay.cosine(step),
    "rsqrt": lambda decay, step: decay.rsqrt(step),
    "constant": lambda decay, step: decay.base,
}


def build_schedule(experiment: Experiment) -> Schedule:
    """The learning rate at each step in [0, num_steps]; the update from step s to s + 1 uses ``schedule(s)``."""
    config, total = experiment.optim.schedule, experiment.num_steps
    warmup, cooldown = experiment.steps(config.warmup), experiment.steps(config.cooldown)
    decay = Decay(
        base=experiment.optim.lr,
        end=config.end_lr,
        total=max(1, total - warmup),
        power=config.power,
        timescale=max(1, experiment.steps(config.timescale)),
        shift=experiment.steps(config.shift),
    )
    at = DECAYS[config.name]

    def schedule(step: int) -> float:
        up = min(1.0, step / warmup) if warmup else 1.0
        down = min(1.0, max(0, total - step) / cooldown) if cooldown else 1.0
        return at(decay, step - warmup) * up * down

    return schedule
