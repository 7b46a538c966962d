"""torch's ``fully_shard`` (FSDP2): weights, gradients and optimiser state are sharded by rows. Does not import torch.

Each block is gathered before its forward and its backward pass; the next block to be used is gathered ahead. What is
outside the blocks stays complete from the forward pass to the end of the backward pass.

The lifetimes of tensors follow torch 2.14 (torch/distributed/fsdp/_fully_shard). The tests count the live storages in
real training steps with 2 and 4 ranks.

Legend: R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.models.families.protocol import FP32
from pretrain.sharding.complete import Complete
from pretrain.sharding.messages import even_parts
from pretrain.sharding.protocol import Memory, Traffic, exchanged
from pretrain.sharding.step import Step
from pretrain.sharding.weights import OUTSIDE


@dataclass(frozen=True)
class Unit:
    """The parameters that one collective gathers.

    Attributes:
        gathered: elements, each parameter padded to equally many rows on every rank.
        reduced: the same of the trained parameters.
        trained: elements of the trained parameters.
    """

    gathered: int
    reduced: int
    trained: int


@dataclass(frozen=True)
class FullyShard:
    """``fully_shard`` on every block and on the rest."""

    name: str = "FSDP2"
    backend: str = "fsdp2"
    setting: str = "cluster.backend: fsdp2"

    def engine(self, precision: str) -> str:
        """See ``Sharding.engine``."""
        return self.backend

    @property
    def stage(self) -> int:
        """See ``Sharding.stage``."""
        return 3

    @property
    def updates_together(self) -> bool:
        """See ``Sharding.updates_together``."""
        return True

    @property
    def keeps_complete_weights(self) -> bool:
        """See ``Sharding.keeps_complete_weights``."""
        return False

    def memory(self, step: Step) -> Memory:
        """See ``Sharding.memory``."""
        width, world = step.weight_bytes, step.num_devices
        rest, blocks = units_of(step)
        every = [rest, *blocks]
        share = sum(unit.reduced for unit in every) // world
        rest_alone, blocks_alone = units_of(step.elementwise)
        alone = sum(unit.reduced for unit in (rest_alone, *blocks_alone)) // world
        owned = step.owned(together=True)
        sums = step.gradient_bytes * step.weights.num_trained  # of the micro-steps before, complete on every rank
        kept = rest.gathered if step.fsdp2.reshard_after_forward else sum(unit.gathered for unit in every)
        ahead = _gathered(step, blocks, len(blocks) - 1) if step.fsdp2.reshard_after_forward else 0
        return Memory(
            weights=FP32 * sum(unit.gathered for unit in every) // world,
            optimizer=step.state_bytes(alone, owned),
            average=step.average_bytes(share),
            gradients=max(sums, FP32 * share) if step.accumulates else FP32 * share,
            carried=sums if step.accumulates else 0,
            gathered=width * kept,
            buffers=ahead,
            idle_buffers=0,
            activations=step.activations,
            working=step.working,
            reduction=_reduction(step, rest, blocks),
            update=FP32 * share + step.working_bytes(alone, _cut_by_rows, together=True),
            teacher=step.teacher,
        )

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """See ``Sharding.traffic``: weights in every micro-step, gradients once a step."""
        if step.num_devices == 1:
            return ()
        rest, blocks = units_of(step)
        gathered = rest.gathered + sum(unit.gathered for unit in blocks)
        if step.fsdp2.reshard_after_forward:  # one block more than has a backward pass is gathered ahead
            gathered += sum(unit.gathered for unit in blocks[max(_first_in_backward(step) - 1, 0) :])
        reduced = sum(unit.reduced for unit in (rest, *blocks))
        found = (
            Traffic(
                "all_gather",
                "weights, for forward and backward passes",
                step.weight_bytes * gathered * step.accumulation_steps,
            ),
            Traffic("reduce_scatter", "gradients", step.gradient_bytes * reduced),
        )
        return tuple(one for one in (*found, *exchanged(step, _cut_by_rows, together=True)) if one.payload)


FSDP2 = FullyShard()


def units_of(step: Step) -> tuple[Unit, list[Unit]]:
    """The parameters outside the blocks, and those of each block, first to last."""
    weights, world = step.weights, step.num_devices
    count = max(weights.units, default=OUTSIDE) + 1
    sums = [[0, 0, 0] for _ in range(count + 1)]
    for size, rows, trained, unit in zip(weights.sizes, weights.rows, weights.trained, weights.units, strict=True):
        padded = -(-rows // world) * world * (size // rows)
        sums[unit][0] += padded
        sums[unit][1] += padded * trained
        sums[unit][2] += size * trained
    return Unit(*sums[OUTSIDE]), [Unit(*each) for each in sums[:-1]]


def _cut_by_rows(group: Sequence[Complete], num_devices: int) -> list[dict[int, int]]:
    return [even_parts(each.rows, each.size // each.rows, num_devices) for each in group]


def _first_in_backward(step: Step) -> int:
    """The first block with a backward pass; the number of blocks if all of them come before any trained parameter."""
    position = 0
    for trained, unit in zip(step.weights.trained, step.weights.units, strict=True):
        position = max(position, unit)
        if trained:
            return position if unit != OUTSIDE or position == 0 else position + 1
    return position


def _gathered(step: Step, blocks: list[Unit], number: int, most: int = 2) -> int:
    """Bytes of the blocks up to a number that are complete or being gathered: at most the last ``most`` of them."""
    first = max(number + 1 - most, 0) if step.fsdp2.reshard_after_forward else 0
    return step.weight_bytes * sum(unit.gathered for unit in blocks[first : number + 1])


def _reduction(step: Step, rest: Unit, blocks: list[Unit]) -> int:
    """Peak over the backward passes of the blocks, last to first, and the reduction of the rest at the end."""
    summed, world = step.gradient_bytes, step.num_devices
    width = summed if step.accumulates else step.weight_bytes  # of complete gradients
    held = step.weight_bytes * rest.gathered + width * rest.trained
    sharded = waiting = most = 0  # gradients that are reduced; the input of the reduction before
    for number in reversed(range(len(blocks))):
        unit, left = blocks[number], step.activations * number // len(blocks)
        own = width * (sum(each.trained for each in blocks[: number + 1]) if step.accumulates else unit.trained)
        output = (summed + (FP32 if summed < FP32 else 0)) * unit.reduced // world
        # Without accumulation a block's gradients appear as its working memory is freed.
        computing = own + step.working if step.accumulates else max(own, step.working)
        during = _gathered(step, blocks, number) + computing + waiting
        reducing = _gathered(step, blocks, number - 1, most=1) + own + summed * unit.reduced + output
        most = max(most, held + sharded + left + max(during, reducing))
        waiting, sharded = summed * unit.reduced, sharded + FP32 * unit.reduced // world
    return max(most, held + sharded + waiting + summed * rest.reduced)
