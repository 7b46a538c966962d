"""The copies of checkpoints in an object store (``checkpoint.mirror``): bytes, and the time that one takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.plan.disk import DiskNeeds
from pipelines.plan.fast_checkpoints import slice_bytes
from pipelines.plan.layouts import Machine
from pipelines.terminal.output import duration
from pretrain.config.schema.experiment import Experiment

DEFAULT_STORE_GB_S = 1.0


@dataclass(frozen=True)
class MirrorNeeds:
    """Demands of the copies.

    Attributes:
        copy_bytes: of one, which is uploaded and read back.
        uploaded_bytes: in the run at most; as many are read back.
        held_bytes: in the store at most: the kept copies and the next one.
        copy_s: to upload one and to read it back, in the background.
        interval_s: between two checkpoints.
        store_gb_s: GB/s of a node to or from the store.
    """

    copy_bytes: int
    uploaded_bytes: int
    held_bytes: int
    copy_s: float
    interval_s: float
    store_gb_s: float

    def in_words(self, experiment: Experiment) -> Iterator[str]:
        """Two lines for the terminal."""
        yield (
            f"mirror      {self.copy_bytes / 1e9:,.2f} GB a copy, at most {self.held_bytes / 1e9:,.1f} GB held and "
            f"{self.uploaded_bytes / 1e9:,.0f} GB uploaded to {experiment.checkpoint.mirror}"
        )
        pace = f"{duration(self.copy_s)} to upload one and read it back, at {self.store_gb_s:g} GB/s of each node"
        if self.copy_s > self.interval_s:
            pace += f"; a checkpoint comes every {duration(self.interval_s)}, so some are not copied"
        yield f"            {pace}"


def mirror_needs(
    experiment: Experiment, machine: Machine, disk: DiskNeeds, store_gb_s: float | None
) -> MirrorNeeds | None:
    """The needs; None: there are no copies.

    Args:
        experiment, machine, disk: of the plan.
        store_gb_s: GB/s of a node to or from the store; None: ``DEFAULT_STORE_GB_S``.
    """
    if experiment.checkpoint.mirror is None:
        return None
    rate, slices = store_gb_s or DEFAULT_STORE_GB_S, slice_bytes(experiment)
    # Each rank copies its own slices, and the first node also the weights files.
    node_bytes = slices / machine.num_nodes + disk.checkpoint_bytes - slices
    copy_s = 2 * node_bytes / (1e9 * rate)
    copies = min(disk.num_saves, max(1, math.ceil(disk.num_saves * disk.lost_s / copy_s)))
    return MirrorNeeds(
        disk.checkpoint_bytes, copies * disk.checkpoint_bytes, disk.held_bytes, copy_s, disk.lost_s, rate
    )
