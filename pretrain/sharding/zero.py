"""DeepSpeed's ZeRO: stage 1 shards the optimiser's state, 2 also gradients, 3 also weights. Does not import torch.

The lifetimes of tensors and DeepSpeed's buffers follow version 0.19 (runtime/zero/stage_1_and_2.py and stage3.py). The
tests count the live storages in real training steps with 2 and 4 ranks.

Legend: p trained parameters · R ranks · b bytes of a weight and of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.models.families.protocol import FP32
from pretrain.sharding.complete import Complete
from pretrain.sharding.messages import even_parts
from pretrain.sharding.protocol import Memory, Traffic, exchanged
from pretrain.sharding.step import Step

ALIGNMENT = 2  # stages 1 and 2 pad each flat group to a multiple of this many elements per rank


@dataclass(frozen=True)
class Zero:
    """ZeRO at stage 1, 2 or 3."""

    stage: int

    @property
    def name(self) -> str:
        """See ``Sharding.name``."""
        return f"ZeRO-{self.stage}"

    @property
    def backend(self) -> str:
        """See ``Sharding.backend``."""
        return "deepspeed"

    def engine(self, precision: str) -> str:
        """See ``Sharding.engine``."""
        return self.backend

    @property
    def setting(self) -> str:
        """See ``Sharding.setting``."""
        return f"cluster.zero_stage: {self.stage}"

    @property
    def updates_together(self) -> bool:
        """See ``Sharding.updates_together``."""
        return False

    @property
    def keeps_complete_weights(self) -> bool:
        """See ``Sharding.keeps_complete_weights``."""
        return self.stage < 3

    def memory(self, step: Step) -> Memory:
        """See ``Sharding.memory``."""
        return _memory_3(step) if self.stage == 3 else _memory_1_and_2(step, shards_gradients=self.stage == 2)

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """See ``Sharding.traffic``."""
        if step.num_devices == 1:
            return ()
        found = _traffic_3(step) if self.stage == 3 else _traffic_1_and_2(step, shards_gradients=self.stage == 2)
        cut = _cut_by_tensors if self.stage == 3 else _cut_anywhere
        return tuple(one for one in (*found, *exchanged(step, cut, together=self.updates_together)) if one.payload)


# ── stages 1 and 2 ──


def _padded(step: Step) -> int:
    """Elements of the flat groups that hold the optimiser's state."""
    return sum(_round_up(sum(group), ALIGNMENT * step.num_devices) for group in step.weights.groups)


def _cut_anywhere(group: Sequence[Complete], num_devices: int) -> list[dict[int, int]]:
    """Tensors are joined to a flat group, which has equal parts on all ranks."""
    share = _round_up(sum(each.size for each in group), ALIGNMENT * num_devices) // num_devices
    found, start = [], 0
    for each in group:
        stop = start + each.size
        ranks = range(start // share, (stop - 1) // share + 1)
        found.append({rank: min(stop, (rank + 1) * share) - max(start, rank * share) for rank in ranks})
        start = stop
    return found


def _memory_1_and_2(step: Step, *, shards_gradients: bool) -> Memory:
    width, padded, bucket = step.gradient_bytes, _padded(step), step.deepspeed.reduce_bucket
    share = padded // step.num_devices
    alone, owned = _padded(step.elementwise) // step.num_devices, step.owned(together=False)
    complete = width * step.weights.num_trained
    gradients = width * share if shards_gradients else complete
    carried = gradients if step.accumulates else 0
    # A bucket has its full size even for a small model; with autocast there is one for each of two types.
    buffers = width * bucket * (2 if step.precision == "autocast" else 1) * (2 if step.deepspeed.overlap else 1)
    if shards_gradients:
        reduction = _overlapped_reduction(step, share, carried=carried, freed=step.activations)
    elif step.deepspeed.overlap:  # a gradient moves into a bucket when it is complete, and its own memory is freed
        reduction = _overlapped_reduction(step, share, carried=0, freed=step.activations + carried)
    else:
        # Stage 1 reduces after the backward pass; gradients that do not fit into the bucket are held outside it.
        copied = width * min(step.weights.num_trained, bucket)
        waiting = 0 if bucket >= step.weights.num_trained else complete - copied
        reduction = waiting + copied + width * share
    return Memory(
        weights=step.weight_bytes * (padded + step.weights.num_frozen),
        optimizer=FP32 * share + step.state_bytes(alone, owned),
        average=step.average_bytes(share),
        gradients=gradients,
        carried=carried,
        gathered=0,
        buffers=buffers,
        idle_buffers=buffers if step.accumulates and not shards_gradients else 0,
        activations=step.activations,
        working=step.working,
        reduction=buffers + reduction,
        update=_update_1_and_2(step, share, step.working_bytes(alone, _cut_anywhere, together=False))
        + (buffers if step.sums_in_place and not shards_gradients else 0),
        teacher=step.teacher,
    )


def _update_1_and_2(step: Step, share: int, working: int) -> int:
    """The share of the gradients as one fp32 tensor, the tensors that it is joined from, and the update's own."""
    if step.sums_in_place:
        return FP32 * share + working
    width = step.gradient_bytes
    flattened = width * share if width < FP32 else 0  # bf16 gradients are joined before they become fp32
    return width * share + FP32 * share + max(working, flattened)


def _overlapped_reduction(step: Step, share: int, *, carried: int, freed: int) -> int:
    """Peak over the reductions in a backward pass, on the rank whose share is reduced first (the last layers).

    Args:
        step: the step.
        share: elements of the rank's share of the gradients, which is allocated at the first reduction.
        carried: bytes of the micro-steps before, to which the share is added if it is not summed in their place.
        freed: bytes that are freed as gradients are produced.
    """
    trained, bucket = step.weights.num_trained, step.deepspeed.reduce_bucket
    share_bytes, copied = step.gradient_bytes * share, step.gradient_bytes * min(trained, bucket)
    held, carried = (carried, 0) if step.sums_in_place else (0, carried)
    most, done = 0, 0
    for _ in range(2):  # later reductions hold what the second holds, and less remains
        if done == trained:
            break
        done = min(done + bucket, trained)
        left = 1 - done / trained
        remaining = round(left * freed) + (step.working if left else 0)
        most = max(most, remaining + max(held + copied, share_bytes))
        held = share_bytes
    return carried + most


def _traffic_1_and_2(step: Step, *, shards_gradients: bool) -> list[Traffic]:
    """DeepSpeed reduces a bucket for all its owners at once, not by reduce-scatter: at stage 2 in every micro-step."""
    times = step.accumulation_steps if shards_gradients else 1
    return [
        Traffic("all_reduce", "gradients", step.reduced_bytes(step.gradient_bytes) * times),
        Traffic("all_gather", "updated weights", step.weight_bytes * _padded(step)),
    ]


# ── stage 3: every tensor is sharded separately, except small ones ──


def _persistent(step: Step) -> int:
    """Elements of the tensors that are too small to be sharded and are kept complete on every rank."""
    threshold = step.deepspeed.persistence_threshold
    return sum(_round_up(size, step.num_devices) for size in step.weights.sizes if size <= threshold)


def _shares(sizes: list[int], num_devices: int) -> int:
    return sum(-(-size // num_devices) for size in sizes)


def _cut_by_tensors(group: Sequence[Complete], num_devices: int) -> list[dict[int, int]]:
    """Each tensor has equal parts on all ranks, the last of which may lack some elements."""
    return [even_parts(each.size, 1, num_devices) for each in group]


def _memory_3(step: Step) -> Memory:
    width, summed, settings = step.weight_bytes, step.gradient_bytes, step.deepspeed
    share = _shares(step.weights.of_kind(trained=True), step.num_devices)
    frozen = _shares(step.weights.of_kind(trained=False), step.num_devices)
    alone = _shares(step.elementwise.weights.of_kind(trained=True), step.num_devices)
    owned = step.owned(together=False)
    working = step.working_bytes(alone, _cut_by_tensors, together=False)
    persistent = _persistent(step)
    autocast = step.precision == "autocast"
    # The buckets are kept; with autocast there is one of the weights' type and one of the compute type.
    buffers = (width + (2 if autocast else 0)) * settings.reduce_bucket
    copied = width * min(step.weights.num_trained, settings.reduce_bucket)
    # A weight is released if its next use is more than ``max_reuse_distance`` away. Between its uses in the forward and
    # the backward pass, all later weights are used twice. At least two units are complete: the current one and the
    # next.
    reused = settings.max_reuse_distance // 2 + 2 * step.footprint.largest_unit
    return Memory(
        weights=width * (share + frozen + persistent),
        optimizer=FP32 * share + step.state_bytes(alone, owned),
        average=step.average_bytes(share),
        gradients=summed * share,
        carried=summed * share,
        gathered=width * max(min(step.weights.num_parameters - persistent, reused), 0),
        buffers=buffers,
        idle_buffers=buffers,
        # DeepSpeed gathers autocast's copies instead of the weights.
        activations=step.activations - (step.footprint.copies if autocast else 0),
        working=step.working,
        reduction=summed * share + buffers + copied,
        update=summed * share + buffers + FP32 * share + working,
        teacher=step.teacher,
    )


def _traffic_3(step: Step) -> list[Traffic]:
    width, world = step.weight_bytes, step.num_devices
    return [
        Traffic(
            "all_gather",
            "weights, for forward and backward passes",
            width * _gathered_elements(step) * step.accumulation_steps,
        ),
        Traffic("reduce_scatter", "gradients", step.reduced_bytes(width, world) * step.accumulation_steps),
        Traffic("all_gather", "updated small weights, kept unsharded", width * _persistent(step)),
    ]


def _gathered_elements(step: Step) -> int:
    """Elements gathered in one micro-step.

    A weight is released after the forward pass, and gathered again for the backward pass, if at least
    ``max_reuse_distance`` elements are used in between: the later layers, twice.
    """
    later, total = 0, 0
    for size in reversed(step.weights.sizes):
        if size > step.deepspeed.persistence_threshold:
            is_released = 2 * later >= step.deepspeed.max_reuse_distance
            total += _round_up(size, step.num_devices) * (2 if is_released else 1)
        later += size
    return total


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
