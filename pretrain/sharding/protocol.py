"""The interface of a sharding, and its answers: the memory of a rank and what it sends. Does not import torch.

Legend: R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pretrain.models.families.protocol import FP32
from pretrain.sharding.messages import Cut, num_sent
from pretrain.sharding.step import Step

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
        teacher: the weights of the frozen teacher of a distillation. Its activations are not counted: it keeps none.
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
    teacher: int = 0

    @property
    def state(self) -> int:
        """Memory that is held between steps."""
        return self.weights + self.optimizer + self.average + self.teacher

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
        teacher = {"teacher": self.teacher} if self.teacher else {}
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            **average,
            **teacher,
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

    kind: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    what: str
    payload: int

    def sent(self, num_devices: int) -> float:
        """Bytes that each of R ranks sends with a ring: (R - 1) / R of the data, twice that for an all-reduce.

        In an all-to-all a rank sends only its own R-th part of the data.
        """
        passes = {"all_reduce": 2.0, "all_to_all": 1 / num_devices}.get(self.kind, 1.0)
        return passes * self.payload * (num_devices - 1) / num_devices


def exchanged(step: Step, cut: Cut, *, together: bool) -> list[Traffic]:
    """The messages of sharded parameters that are updated as complete tensors (see ``pretrain.optim.exchange``).

    Args:
        step: the step, of more than one rank.
        cut: how the parameters are sharded.
        together: whether all groups are updated at the same time.
    """
    world = step.num_devices
    sent = num_sent(step.weights.updated(together=together), world, cut)
    payload = FP32 * sent * world // (world - 1)  # a rank keeps its own part of the data
    read = ["gradients, to owners", *(["weights, to owners"] if step.optimizer.reads_weights else [])]
    return [Traffic("all_to_all", what, payload) for what in (*read, "changes, from owners")]


def size_text(num_bytes: float) -> str:
    """Formats bytes in MiB or GiB."""
    gib = num_bytes / GIB
    return f"{gib:,.1f} GiB" if abs(gib) >= 1 else f"{num_bytes / 2**20:,.1f} MiB"


class Sharding(Protocol):
    """How weights, gradients and optimiser state are divided among ranks.

    A new one is a class in its own file, a row in ``choice.SHARDINGS``, and its name in the table of
    combinations (``pretrain/config/combinations.py``).
    """

    @property
    def name(self) -> str:
        """Name for display and for the table of combinations."""
        ...

    @property
    def backend(self) -> str:
        """The value of ``cluster.backend`` that it belongs to."""
        ...

    def engine(self, precision: str) -> str:
        """The backend in ``pretrain.engine.backends`` that implements it."""
        ...

    @property
    def setting(self) -> str:
        """The setting that chooses it, ``key: value``."""
        ...

    @property
    def stage(self) -> int:
        """ZeRO's stage; 0 if nothing is sharded. It increases with the amount of sharding."""
        ...

    @property
    def updates_together(self) -> bool:
        """Whether one call of the optimiser updates all parameter groups."""
        ...

    @property
    def keeps_complete_weights(self) -> bool:
        """Whether every rank keeps all weights between their uses."""
        ...

    def memory(self, step: Step) -> Memory:
        """Bytes on the rank that holds the most."""
        ...

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """The collectives of an optimiser step; empty for a single rank."""
        ...
