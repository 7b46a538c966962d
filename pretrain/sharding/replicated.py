"""No sharding: DDP with Accelerate, DeepSpeed's stage 0, or either with fp32 masters of bf16 weights. Without torch."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.models.families.protocol import FP32
from pretrain.sharding.complete import Owned
from pretrain.sharding.protocol import Memory, Traffic
from pretrain.sharding.step import Step

BUCKET = 25_000_000  # elements that the backend of bf16 weights reduces at once
STAGE_0_BUCKET = 500_000_000  # elements that DeepSpeed reduces at once at stage 0 (runtime/engine.py)


@dataclass(frozen=True)
class Replicated:
    """Every rank holds the complete state and updates all of it.

    Attributes:
        name: name for display.
        backend: the value of ``cluster.backend``; with bf16 weights another backend implements it.
        setting: the setting that chooses it.
        keeps_buckets: DDP's reducer keeps buckets of the size of all gradients; DeepSpeed copies gradients into one as
            it reduces them.
    """

    name: str
    backend: str
    setting: str
    keeps_buckets: bool

    def engine(self, precision: str) -> str:
        """See ``Sharding.engine``."""
        return "masters" if precision == "bf16" else self.backend

    @property
    def stage(self) -> int:
        """See ``Sharding.stage``."""
        return 0

    @property
    def updates_together(self) -> bool:
        """See ``Sharding.updates_together``."""
        return True

    @property
    def keeps_complete_weights(self) -> bool:
        """See ``Sharding.keeps_complete_weights``."""
        return True

    def memory(self, step: Step) -> Memory:
        """See ``Sharding.memory``."""
        if step.weight_bytes < FP32:
            return _memory_with_masters(step)
        trained, alone = step.weights.num_trained, step.num_devices == 1
        gradients = step.weight_bytes * trained
        owned = step.owned(together=True)
        kept = gradients if self.keeps_buckets and not alone else 0
        copied = 0 if self.keeps_buckets or alone else step.weight_bytes * min(trained, STAGE_0_BUCKET)
        return Memory(
            weights=step.weight_bytes * step.weights.num_parameters,
            optimizer=step.state_bytes(step.elementwise.weights.num_trained, owned),
            average=step.average_bytes(trained),
            gradients=gradients,
            carried=gradients if step.accumulates else 0,
            gathered=0,
            buffers=kept,
            idle_buffers=kept,
            activations=step.activations,
            working=step.working,
            reduction=gradients + kept + copied,
            update=gradients + kept + _working(step, owned),
            teacher=step.teacher,
        )

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """See ``Sharding.traffic``: DDP and DeepSpeed reduce the sum of a step's gradients once."""
        if step.num_devices == 1:
            return ()
        found = (
            Traffic("all_reduce", "gradients", step.gradient_bytes * step.weights.num_trained),
            Traffic("all_gather", "changes, from owners", _changes(step, step.owned(together=True))),
        )
        return tuple(one for one in found if one.payload)


def _changes(step: Step, owned: Owned) -> int:
    """Bytes of the changes of complete tensors; every rank sends as much as the one that owns the most."""
    return FP32 * owned.size * step.num_devices


def _working(step: Step, owned: Owned) -> int:
    """Bytes of the temporaries of an update. An owner reads gradients in place; changes are gathered at the end."""
    alone = step.temporary_bytes(step.elementwise.weights.num_trained)
    gathered = _changes(step, owned) if step.num_devices > 1 else 0
    return max(alone, FP32 * owned.size + max(gathered, FP32 * owned.temporaries))


def _memory_with_masters(step: Step) -> Memory:
    """bf16 weights and their fp32 masters; gradients are summed in buckets, and become fp32 one bucket at a time."""
    trained = step.weights.num_trained
    owned = step.owned(together=True)
    gradients = step.gradient_bytes * trained
    bucket = step.gradient_bytes * min(trained, BUCKET)  # the first gradient allocates all of its bucket
    rounded = bucket if step.gradient_bytes < FP32 else 0
    return Memory(
        weights=step.weight_bytes * step.weights.num_parameters,
        optimizer=FP32 * trained + step.state_bytes(step.elementwise.weights.num_trained, owned),
        average=step.average_bytes(trained),
        gradients=gradients,
        carried=gradients if step.accumulates else 0,
        gathered=0,
        buffers=0 if step.accumulates else bucket,
        idle_buffers=0,
        activations=step.activations,
        working=step.working,
        reduction=gradients,
        update=FP32 * trained + max(rounded, _working(step, owned)),
        teacher=step.teacher,
    )


DDP = Replicated("DDP", "accelerate", "cluster.backend: accelerate", keeps_buckets=True)
ZERO_0 = Replicated("ZeRO-0", "deepspeed", "cluster.zero_stage: 0", keeps_buckets=False)
