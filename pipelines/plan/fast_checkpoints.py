"""The needs of fast checkpoints (``checkpoint.fast``) on each node, and what a crash costs with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.plan.layouts import Machine
from pipelines.terminal.output import duration
from pretrain.config.schema.experiment import Experiment
from pretrain.sharding.protocol import size_text
from pretrain.sharding.weights import num_state_values, weights_of

ASSUMED_SEND_BYTES_S = 1e9  # TCP through one network device, whatever the training's own network reaches


@dataclass(frozen=True)
class FastNeeds:
    """Demands of fast checkpoints.

    Attributes:
        node_bytes: in the folder of each node at most: two saves, each of its own part and a copy of its neighbour's.
        host_bytes: in a node's memory besides: the buffers that a save is written from.
        sent_bytes: by each node in each save; 0: there are no copies.
        send_s: for that, in the background.
        lost_steps, lost_s: training that a crash costs at most, and its seconds on all devices together.
    """

    node_bytes: int
    host_bytes: int
    sent_bytes: int
    send_s: float
    lost_steps: int
    lost_s: float

    def in_words(self, experiment: Experiment) -> Iterator[str]:
        """Two lines for the terminal."""
        config = experiment.checkpoint.fast
        assert config is not None
        yield (
            f"fast        every {config.every} in {config.folder}: at most {size_text(self.node_bytes)} there and "
            f"{size_text(self.host_bytes)} of other memory on each node"
        )
        lost = f"{self.lost_steps:,} steps, {duration(self.lost_s)}"
        if self.sent_bytes:
            yield (
                f"            {size_text(self.sent_bytes)} to the next node, in {self.send_s:.2g} s at an assumed "
                f"{ASSUMED_SEND_BYTES_S / 1e9:g} GB/s; a lost node costs at most {lost}"
            )
        else:
            yield f"            without copies on other nodes; a crash costs at most {lost}, unless the node is lost"


def slice_bytes(experiment: Experiment) -> int:
    """Bytes of the slices of all ranks: fp32 weights, and the states of the trained ones."""
    return round(4 * (weights_of(experiment).num_parameters + num_state_values(experiment)))


def fast_needs(experiment: Experiment, machine: Machine, images_per_s: float) -> FastNeeds | None:
    """The needs; None: there are no fast checkpoints."""
    config = experiment.checkpoint.fast
    if config is None:
        return None
    part = math.ceil(slice_bytes(experiment) / machine.num_nodes)
    sent = part if config.peers and machine.num_nodes > 1 else 0
    step_s = experiment.mean_batch_size / images_per_s
    by_time = math.inf if config.every.seconds is None else math.ceil(config.every.seconds / step_s)
    steps = int(min(experiment.fast_save_every or math.inf, by_time, experiment.num_steps))
    return FastNeeds(2 * (part + sent), part, sent, sent / ASSUMED_SEND_BYTES_S, steps, steps * step_s)
