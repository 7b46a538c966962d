"""The checkpoints of a run on the shared disk: bytes, how many, and what a kill costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.plan.fast_checkpoints import slice_bytes
from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.registry import num_parameters


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes on disk for checkpoints, and the interval between two of them.

    Attributes:
        checkpoint_bytes: of one.
        num_saves, num_kept: in the run; at most at its end.
        held_bytes, written_bytes: at most at any time; in the run.
        lost_steps: training that a kill costs at most.
        lost_s: its seconds, on all devices together.
    """

    checkpoint_bytes: int
    num_saves: int
    num_kept: int
    held_bytes: int
    written_bytes: int
    lost_steps: int
    lost_s: float


def disk_needs(experiment: Experiment, images_per_s: float) -> DiskNeeds:
    """The plain weights, and the EMA weights, come on top of the slices."""
    parameters = num_parameters(experiment.model, experiment.num_outputs)
    averaged = experiment.optim.ema_decay is not None
    size = slice_bytes(experiment) + 4 * parameters * (2 if averaged else 1)
    step_s = experiment.mean_batch_size / images_per_s
    by_training = min(experiment.save_every or experiment.num_steps, experiment.num_steps)
    seconds = experiment.checkpoint.every.seconds
    lost = by_training if seconds is None else min(by_training, math.ceil(seconds / step_s))
    # Time is counted from the last checkpoint, so each stretch between two that are due by training starts again.
    full, rest = divmod(experiment.num_steps, by_training)
    saves = full * math.ceil(by_training / lost) + math.ceil(rest / lost)
    config = experiment.checkpoint
    multiples = 0 if config.keep_every is None else experiment.num_steps // experiment.steps(config.keep_every)
    kept = min(saves, config.keep_last + multiples + (config.keep_best is not None))
    held = kept + 1  # the next one is written before the oldest is deleted
    return DiskNeeds(size, saves, kept, held * size, saves * size, lost, lost * step_s)
