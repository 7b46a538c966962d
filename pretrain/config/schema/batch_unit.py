"""The settings that batches of constant tokens (``batch_unit``) need or exclude."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.config.schema.experiment import Experiment


def batch_unit_problems(experiment: Experiment) -> Iterator[str]:
    """The settings that do not fit ``batch_unit``, one message each, without the key and its value."""
    data = experiment.data
    if not experiment.changes_size:
        yield (
            "needs images that change their size: set data.resolution, model.patch_sizes or a list as "
            "data.train_transform.max_tokens, or remove it"
        )
        return
    if data.repeated_augmentation > 1:
        yield "does not work with data.repeated_augmentation, whose copies are in one batch; remove one"
    if data.effective_mixing.active and data.effective_mixing.per == "batch":
        yield "does not work with data.mixing.per: batch (or data.augreg); use per: pair, or remove batch_unit"
    if experiment.optim.schedule.per_epoch:
        yield "does not work with optim.schedule.per_epoch: an epoch has no fixed number of steps; remove one"
    if len(experiment.batches.parts) == 1:
        yield "is so large that every step has global_batch_size images; make it smaller"
