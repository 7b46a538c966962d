"""No sharding: DDP with Accelerate, or DeepSpeed's stage 0. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.sharding.memory import Memory, Traffic
from pretrain.sharding.step import Step

STAGE_0_BUCKET = 500_000_000  # elements that DeepSpeed reduces at once at stage 0 (runtime/engine.py)


@dataclass(frozen=True)
class Replicated:
    """Every rank holds the complete state and updates all of it.

    Attributes:
        name: name for display.
        backend: the backend that implements it.
        setting: the setting that chooses it.
        keeps_buckets: DDP's reducer keeps buckets of the size of all gradients; DeepSpeed copies gradients into one as
            it reduces them.
    """

    name: str
    backend: str
    setting: str
    keeps_buckets: bool

    @property
    def stage(self) -> int:
        """See ``Sharding.stage``."""
        return 0

    @property
    def updates_complete_tensors(self) -> bool:
        """See ``Sharding.updates_complete_tensors``."""
        return True

    @property
    def keeps_complete_weights(self) -> bool:
        """See ``Sharding.keeps_complete_weights``."""
        return True

    def memory(self, step: Step) -> Memory:
        """See ``Sharding.memory``."""
        trained, alone = step.weights.num_trained, step.num_devices == 1
        gradients = step.weight_bytes * trained
        kept = gradients if self.keeps_buckets and not alone else 0
        copied = 0 if self.keeps_buckets or alone else step.weight_bytes * min(trained, STAGE_0_BUCKET)
        return Memory(
            weights=step.weight_bytes * step.weights.num_parameters,
            optimizer=step.state_bytes(trained),
            average=step.average_bytes(trained),
            gradients=gradients,
            carried=gradients if step.accumulates else 0,
            gathered=0,
            buffers=kept,
            idle_buffers=kept,
            activations=step.activations,
            working=step.working,
            reduction=gradients + kept + copied,
            update=gradients + kept + step.temporary_bytes(trained),
        )

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """See ``Sharding.traffic``: DDP and DeepSpeed reduce the sum of a step's gradients once."""
        if step.num_devices == 1:
            return ()
        return (Traffic("all_reduce", "gradients", step.weight_bytes * step.weights.num_trained),)


DDP = Replicated("DDP", "accelerate", "cluster.backend: accelerate", keeps_buckets=True)
ZERO_0 = Replicated("ZeRO-0", "deepspeed", "cluster.zero_stage: 0", keeps_buckets=False)
