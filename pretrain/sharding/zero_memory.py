"""Bytes on one device while training, by ZeRO stage: one arithmetic for every model, from a few numbers about it.

What is held when, and DeepSpeed's own buffers, follow its version 0.19 (runtime/zero/stage_1_and_2.py, stage3.py, and
engine.py for stage 0). The tests count the storages that live in real training steps of 2 and 4 ranks.

Legend: p parameters · R ranks · s = p / R a share · b bytes of a weight and of its gradient · n optimiser states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["fp32", "bf16", "autocast"]

FP32 = 4
WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 4}
STAGE_0_BUCKET = 500_000_000  # elements that stage 0 reduces at once


@dataclass(frozen=True)
class Buckets:
    """DeepSpeed's settings that decide memory, in elements; the defaults are its own."""

    reduce: int = 500_000_000
    max_reuse_distance: int = 1_000_000_000
    overlap: bool = False  # stages 1 and 2: a second bucket is filled while the first is reduced

    @classmethod
    def of(cls, deepspeed: Mapping[str, Any]) -> Buckets:
        """What ``cluster.deepspeed`` says of them."""
        zero = deepspeed.get("zero_optimization", {})
        return cls(
            reduce=int(float(zero.get("reduce_bucket_size", cls.reduce))),
            max_reuse_distance=int(float(zero.get("stage3_max_reuse_distance", cls.max_reuse_distance))),
            overlap=bool(zero.get("overlap_comm", cls.overlap)),
        )


@dataclass(frozen=True)
class Footprint:
    """What of a model decides its memory.

    Attributes:
        parameters: p.
        largest_unit: parameters that are gathered together at stage 3: a block, or a layer.
        kept: bytes per image that the forward pass keeps for the backward pass.
        working: bytes per image that the backward pass needs at once on top.
        copies: bytes of weights in another type that the backward pass reads.
    """

    parameters: int
    largest_unit: int
    kept: int
    working: int
    copies: int


@dataclass(frozen=True)
class MemoryBytes:
    """Bytes on the device that holds the most: what stays, and what the phases of a step hold on top of it.

    Attributes:
        weights: b × p, a share at stage 3.
        optimizer: its states, and from stage 1 on the fp32 master weights: shares.
        gradients: from the first micro-step of a step on: whole at stages 0 and 1, a share at 2 and 3.
        gathered: stage 3: weights that are whole between the forward and the backward pass.
        buffers: the buckets into which the backward pass puts gradients to be reduced.
        idle_buffers: those of them that stay until the next forward pass.
        activations: what the forward pass keeps.
        working: what the backward pass needs on top at its start.
        reduction: the most of activations, gradients, buckets and copies while gradients are reduced.
        update: gradients, their fp32 copies and temporaries while the optimiser updates.
    """

    weights: int
    optimizer: int
    gradients: int
    gathered: int
    buffers: int
    idle_buffers: int
    activations: int
    working: int
    reduction: int
    update: int

    @property
    def forward(self) -> int:
        """At the end of the forward pass of a step's last micro-step."""
        state = self.weights + self.optimizer + self.gradients + self.gathered
        return state + self.idle_buffers + self.activations

    @property
    def backward(self) -> int:
        """The most that the backward pass holds: at its start, or while gradients are reduced."""
        start = self.forward + self.buffers - self.idle_buffers + self.working
        return max(start, self.weights + self.optimizer + self.reduction)

    @property
    def step(self) -> int:
        """While the optimiser updates."""
        return self.weights + self.optimizer + self.update

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return max(self.backward, self.step)


def memory_bytes(
    model: Footprint,
    *,
    precision: Precision,
    zero_stage: int,
    num_devices: int,
    micro_batch_size: int,
    num_optimizer_states: float = 2,
    accumulates: bool = True,
    num_temporaries: int = 1,
    buckets: Buckets | None = None,
) -> MemoryBytes:
    """Bytes on one device while training with DeepSpeed.

    Not counted: the CUDA context, the communication library, and the allocator's fragmentation.

    Args:
        model: what of the model decides.
        precision: as in the experiment; bf16 has fp32 master weights.
        zero_stage: 0 to 3; 0 also stands for DDP.
        num_devices: R, over which ZeRO shards.
        micro_batch_size: images per device in one forward and backward pass.
        num_optimizer_states: n, fp32 numbers per parameter (a bf16 one is half): AdamW 2, SGD with momentum 1, a
            Polyak average one more.
        accumulates: a step has more than one micro-step, so that gradients live beside activations.
        num_temporaries: fp32 tensors of a parameter's size that the optimiser makes while it updates. AdamW makes one
            on a GPU, where it works on all tensors at once, and two on a CPU.
        buckets: DeepSpeed's settings; None: its defaults.
    """
    sizes = _Sizes(model.parameters, num_devices, WEIGHT_BYTES[precision], buckets or Buckets())
    # At stage 3 DeepSpeed gathers autocast's copies in place of the weights.
    copies = 0 if zero_stage == 3 and precision == "autocast" else model.copies
    activations, working = micro_batch_size * model.kept + copies, micro_batch_size * model.working
    stages = {0: _stage_0, 1: _stages_1_and_2, 2: _stages_1_and_2, 3: _stage_3}
    return stages[zero_stage](
        _Case(
            sizes,
            zero_stage,
            activations,
            working,
            model.largest_unit,
            num_optimizer_states,
            accumulates,
            num_temporaries,
            precision == "autocast",
        )
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes and elements that several stages need."""

    parameters: int
    num_devices: int
    bytes: int  # b
    buckets: Buckets

    @property
    def share(self) -> int:
        return -(-self.parameters // self.num_devices)

    @property
    def whole_bytes(self) -> int:
        return self.bytes * self.parameters

    @property
    def share_bytes(self) -> int:
        return self.bytes * self.share

    @property
    def flat_bytes(self) -> int:
        """What is in a bucket is copied to one tensor to be reduced."""
        return self.bytes * min(self.parameters, self.buckets.reduce)

    def gathered(self, unit: int) -> int:
        """Weights that stay whole from their use in the forward pass until that in the backward pass.

        A weight is let go where more than ``max_reuse_distance`` others come before its next use; between its two
        uses lie those behind it, twice. Two units are whole at least: one in use and the next.
        """
        return min(self.parameters, self.buckets.max_reuse_distance // 2 + 2 * unit)


@dataclass(frozen=True)
class _Case:
    """What the arithmetic of a stage depends on."""

    sizes: _Sizes
    zero_stage: int
    activations: int
    working: int
    largest_unit: int
    num_states: float
    accumulates: bool
    num_temporaries: int
    autocast: bool

    @property
    def temporaries(self) -> int:
        return FP32 * self.sizes.share * self.num_temporaries

    @property
    def state(self) -> int:
        return int(FP32 * self.sizes.share * (self.num_states + 1))


def _stage_0(case: _Case) -> MemoryBytes:
    sizes = case.sizes
    reduced = sizes.bytes * min(sizes.parameters, STAGE_0_BUCKET) if sizes.num_devices > 1 else 0
    return MemoryBytes(
        weights=sizes.whole_bytes,
        optimizer=int(FP32 * case.num_states * sizes.parameters),
        gradients=sizes.whole_bytes if case.accumulates else 0,
        gathered=0,
        buffers=0,
        idle_buffers=0,
        activations=case.activations,
        working=case.working,
        reduction=sizes.whole_bytes + reduced,
        update=sizes.whole_bytes + FP32 * sizes.parameters * case.num_temporaries,
    )


def _stages_1_and_2(case: _Case) -> MemoryBytes:
    """A bucket is made whole, however small the model; with autocast there is one for each of two types."""
    sizes, second = case.sizes, case.zero_stage == 2
    buffers = sizes.bytes * sizes.buckets.reduce * (2 if case.autocast else 1) * (2 if sizes.buckets.overlap else 1)
    carried = (sizes.share_bytes if second else sizes.whole_bytes) if case.accumulates else 0
    # Stage 1 reduces after the backward pass, while gradients that wait are whole; stage 2 in the middle of it.
    waiting = max(sizes.whole_bytes - sizes.flat_bytes, 0) + sizes.flat_bytes + sizes.share_bytes
    if sizes.buckets.reduce >= sizes.parameters:  # all of them wait in the bucket
        waiting = sizes.flat_bytes + sizes.share_bytes
    flattened = sizes.share_bytes if sizes.bytes < FP32 else 0  # bf16 gradients are joined before they become fp32
    reduction = carried + _stage_2_reduction(case) if second else waiting
    return MemoryBytes(
        weights=sizes.whole_bytes,
        optimizer=case.state,
        gradients=carried,
        gathered=0,
        buffers=buffers,
        idle_buffers=buffers if case.accumulates and not second else 0,
        activations=case.activations,
        working=case.working,
        reduction=buffers + reduction,
        update=sizes.share_bytes + FP32 * sizes.share + max(case.temporaries, flattened),
    )


def _stage_2_reduction(case: _Case) -> int:
    """The most at one of the reductions of the rank whose share comes first: the last layers'.

    Activations go as gradients come; the share is made at the first reduction.
    """
    sizes = case.sizes
    most, done, share = 0, 0, 0
    while done < sizes.parameters:
        done = min(done + sizes.buckets.reduce, sizes.parameters)
        left = 1 - done / sizes.parameters
        activations = round(left * case.activations) + (case.working if left else 0)
        most = max(most, activations + max(share + sizes.flat_bytes, sizes.share_bytes))
        share = sizes.share_bytes
    return most


def _stage_3(case: _Case) -> MemoryBytes:
    sizes = case.sizes
    # The buckets stay; with autocast there is one of the weights' type and one of the computing type.
    buffers = (sizes.bytes + (2 if case.autocast else 0)) * sizes.buckets.reduce
    return MemoryBytes(
        weights=sizes.share_bytes,
        optimizer=case.state,
        gradients=sizes.share_bytes,
        gathered=sizes.bytes * sizes.gathered(case.largest_unit),
        buffers=buffers,
        idle_buffers=buffers,
        activations=case.activations,
        working=case.working,
        reduction=sizes.share_bytes + buffers + sizes.flat_bytes,
        update=sizes.share_bytes + buffers + FP32 * sizes.share + case.temporaries,
    )


def communication_bytes(
    model: Footprint,
    *,
    precision: Precision,
    zero_stage: int,
    num_devices: int,
    accumulation_steps: int,
    buckets: Buckets | None = None,
) -> int:
    """Bytes that one device sends in one optimiser step, with ring collectives.

    Stage 0: all-reduce of the gradients. Stage 1: that, and an all-gather of the updated weights. Stage 2: the
    all-reduce in each micro-step (DeepSpeed reduces a bucket for all its owners at once, not by reduce-scatter), and
    the all-gather. Stage 3: in each micro-step a gather for the forward pass, one for what the backward pass needs
    again, and a reduce-scatter. A ring all-reduce sends 2 (R - 1) / R of the data, a gather or scatter half of that.
    """
    sizes = _Sizes(model.parameters, num_devices, WEIGHT_BYTES[precision], buckets or Buckets())
    once = sizes.whole_bytes * (num_devices - 1) / num_devices
    again = 1 - sizes.gathered(model.largest_unit) / model.parameters
    passes = {
        0: 2.0,
        1: 2.0 + 1,
        2: 2.0 * accumulation_steps + 1,
        3: (2.0 + again) * accumulation_steps,
    }[zero_stage]
    return round(passes * once)
