"""Records of a rank's memory and traffic, and formatting of byte counts. Does not import torch.

Legend: R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors on the rank that holds the most.

    Excludes the CUDA context, the communication library and the allocator's fragmentation.

    Attributes:
        weights: the model's weights, including padding and tensors that are kept unsharded.
        optimizer: the optimiser's states, and the fp32 master weights if weights are sharded.
        average: the EMA of the weights.
        gradients: the most held outside the buckets. If they are not sharded, that is all of them at the end of every
            backward pass, also without accumulation.
        carried: gradients held along with the activations of a step's last micro-step; 0 without accumulation.
        gathered: sharded weights that are complete between the forward and the backward pass.
        buffers: buckets in which the backward pass collects gradients to reduce them.
        idle_buffers: the part of the buffers that is kept until the next forward pass.
        activations: tensors the forward pass keeps for the backward pass, including copies of weights in another type.
        working: additional memory at the start of the backward pass.
        reduction: peak of activations, gradients, buckets and copies while gradients are reduced.
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
        """Memory that is held between steps."""
        return self.weights + self.optimizer + self.average

    @property
    def forward(self) -> int:
        """Memory at the end of the forward pass of a step's last micro-step."""
        return self.state + self.carried + self.gathered + self.idle_buffers + self.activations

    @property
    def backward(self) -> int:
        """Peak of the backward pass: at its start, or while gradients are reduced."""
        start = self.forward + self.buffers - self.idle_buffers + self.working
        return max(start, self.state + self.reduction)

    @property
    def step(self) -> int:
        """Memory while the optimiser updates."""
        return self.state + self.update

    @property
    def peak(self) -> int:
        """Peak memory."""
        return max(self.backward, self.step)

    def parts(self) -> dict[str, int]:
        """The parts that commands report besides the peak, in this order; not all are held at the same time."""
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
    """The data that one kind of collective moves in an optimiser step. Scalar reductions are left out.

    Attributes:
        kind: kind of collective.
        what: description of the data.
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
    """Formats bytes in MiB or GiB."""
    gib = num_bytes / GIB
    return f"{gib:,.1f} GiB" if abs(gib) >= 1 else f"{num_bytes / 2**20:,.1f} MiB"
