"""What a rank holds and sends: the records that every sharding answers with, and bytes in words. No torch.

Legend: R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on the rank that holds the most.

    Not counted: the CUDA context, the communication library, and the allocator's fragmentation.

    Attributes:
        weights: the model's, padding and tensors that are kept unsharded included.
        optimizer: the optimiser's states, and where weights are sharded the fp32 master weights.
        average: the Polyak average.
        gradients: the most that is held of them outside the buckets. Where they are not sharded that is all of them,
            at the end of every backward pass, also without accumulation.
        carried: gradients that live beside the activations of a step's last micro-step; 0 without accumulation.
        gathered: sharded weights that are complete between the forward and the backward pass.
        buffers: buckets in which the backward pass collects gradients to reduce them.
        idle_buffers: the part of them that stays until the next forward pass.
        activations: what the forward pass keeps for the backward pass, copies of weights in another type included.
        working: what the backward pass needs on top at its start.
        reduction: the most of activations, gradients, buckets and copies while gradients are reduced.
        update: gradients, their fp32 copies and temporaries while the optimiser updates.
    """

    weights: int
    optimizer: int
    average: int
    gradients: int
    carried: int
    gathered: int
    buffers: int
    idle_buffers: int
    activations: int
    working: int
    reduction: int
    update: int

    @property
    def state(self) -> int:
        """What stays between steps."""
        return self.weights + self.optimizer + self.average

    @property
    def forward(self) -> int:
        """At the end of the forward pass of a step's last micro-step."""
        return self.state + self.carried + self.gathered + self.idle_buffers + self.activations

    @property
    def backward(self) -> int:
        """The most that the backward pass holds: at its start, or while gradients are reduced."""
        start = self.forward + self.buffers - self.idle_buffers + self.working
        return max(start, self.state + self.reduction)

    @property
    def step(self) -> int:
        """While the optimiser updates."""
        return self.state + self.update

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return max(self.backward, self.step)

    def parts(self) -> dict[str, int]:
        """What every command reports beside the peak, in this order; they do not all live at the same moment."""
        average = {"average": self.average} if self.average else {}
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            **average,
            "buckets": self.buffers,
            "activations": self.activations + self.working,
        }

    def in_words(self) -> str:
        """``parts`` as one line."""
        return ", ".join(f"{name} {size_text(size)}" for name, size in self.parts().items())


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective moves in an optimiser step. Scalars that ranks agree on are left out.

    Attributes:
        kind: of the collective.
        what: in words.
        payload: bytes of the unsharded tensors, over all calls of a step.
    """

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    what: str
    payload: int

    def sent(self, num_devices: int) -> float:
        """Bytes that each of R ranks sends with a ring: (R - 1) / R of the data, twice that for an all-reduce."""
        passes = 2 if self.kind == "all_reduce" else 1
        return passes * self.payload * (num_devices - 1) / num_devices


def size_text(num_bytes: float) -> str:
    """Bytes for people, in MiB or GiB."""
    gib = num_bytes / GIB
    return f"{gib:,.1f} GiB" if abs(gib) >= 1 else f"{num_bytes / 2**20:,.1f} MiB"
