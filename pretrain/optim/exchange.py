"""Moves tensors between the ranks that hold parts of them and the rank that owns each: one message each way.

A sharding cuts the parameters into contiguous parts of the flattened tensors: ZeRO anywhere, FSDP2 between rows, DDP
not at all. Every rank tells the others once which parts it holds; afterwards all know what each message contains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from pretrain.distributed.collectives import all_gather_flat, all_to_all_flat, gather_objects
from pretrain.optim.owners import owners_of


@dataclass(frozen=True)
class Fragment:
    """A contiguous part of a parameter, inside a storage that the optimiser updates.

    Attributes:
        name: the parameter's.
        shape: of the complete parameter.
        offset: index of the first element in the flattened parameter.
        storage: fp32 tensor with this part of the weights, a parameter of the optimiser.
        start: index of the first element in the flattened storage.
        numel: number of elements.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    storage: Tensor
    start: int
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """Its elements (numel,) in a tensor with the layout of the storage, in the same memory."""
        return tensor.view(-1).narrow(0, self.start, self.numel)

    def weights(self) -> Tensor:
        """Its weights (numel,), in the same memory."""
        return self.of(self.storage.detach())

    def gradient(self) -> Tensor:
        """Its gradient (numel,); 0 for a parameter that the loss does not depend on."""
        grad = self.storage.grad
        return self.weights().new_zeros(self.numel) if grad is None else self.of(grad.contiguous())


@dataclass(frozen=True)
class Batch:
    """The parts of parameters that one call of the optimiser updates.

    Attributes:
        storages: those of this rank; there may be none.
        fragments: the parts of parameters in them.
    """

    storages: tuple[Tensor, ...]
    fragments: tuple[Fragment, ...]

    @classmethod
    def of_unsharded(cls, named: Mapping[str, Tensor]) -> Batch:
        """Complete parameters by name."""
        parts = [Fragment(name, tuple(one.shape), 0, one, 0, one.numel()) for name, one in named.items()]
        return cls(tuple(named.values()), tuple(parts))

    def only(self, names: Collection[str]) -> Batch:
        """This batch with the parts of some parameters."""
        return Batch(self.storages, tuple(part for part in self.fragments if part.name in names))

    @property
    def has_no_gradient(self) -> bool:
        """Whether this rank holds parts of parameters, and none has a gradient."""
        return bool(self.fragments) and all(part.storage.grad is None for part in self.fragments)


@dataclass(frozen=True)
class _Part:
    """A part that a rank holds, as its peers know it."""

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int

    @property
    def is_complete(self) -> bool:
        """Whether it is the complete parameter."""
        return self.numel == math.prod(self.shape)

    def of(self, complete: Tensor) -> Tensor:
        """Its elements (numel,) of a complete tensor."""
        return complete.view(-1).narrow(0, self.offset, self.numel)


Message = list[_Part]


class Exchange:
    """The messages of one batch, as one rank sees them.

    Args:
        fragments: those of this rank.
        held: for each rank, its parts.
        owners: name of each tensor → the rank that owns it.
        rank: this rank.
        device: where messages and complete tensors are.

    Attributes:
        owned: name → shape of every tensor that this rank owns.
        is_used: whether any rank owns a tensor.
    """

    def __init__(
        self,
        fragments: Sequence[Fragment],
        held: Sequence[Message],
        owners: Mapping[str, int],
        rank: int,
        device: torch.device,
    ) -> None:
        self._device = device
        self._fragments = {(one.name, one.offset): one for one in fragments}
        shapes = {part.name: part.shape for parts in held for part in parts}
        self.owned = {name: shape for name, shape in shapes.items() if owners[name] == rank}
        self.is_used = bool(shapes)
        # With DDP nobody lacks a part, and every owner sends the same to all.
        self._replicated = all(sum(part.is_complete for part in parts) == len(shapes) for parts in held)
        self._parts = [[part for part in held[rank] if owners[part.name] == owner] for owner in range(len(held))]
        self._wanted = [[part for part in parts if owners[part.name] == rank] for parts in held]
        self._rank = rank

    @classmethod
    def alone(cls, batch: Batch) -> Exchange:
        """The exchange of a process that owns everything that it holds."""
        owners = {part.name: 0 for part in batch.fragments}
        device = batch.storages[0].device if batch.storages else torch.device("cpu")
        return cls(batch.fragments, [_parts_of(batch)], owners, 0, device)

    def empty(self, name: str) -> Tensor:
        """Shape, type and device of a complete tensor that this rank owns, without values."""
        return torch.empty((), device=self._device).expand(self.owned[name])

    def collect(self, read: Callable[[Fragment], Tensor]) -> dict[str, Tensor]:
        """The complete tensors that this rank owns; some may be views of what is read. Collective: yes.

        Args:
            read: gives the values of a fragment, fp32 (numel,).
        """
        if self._replicated:
            return {part.name: self._read(read, part).view(part.shape) for part in self._parts[self._rank]}
        received = self._send([[self._read(read, part) for part in parts] for parts in self._parts], self._wanted)
        found: dict[str, Tensor] = {}
        for part, values in received:
            if part.is_complete:
                found[part.name] = values.view(part.shape)
            else:
                part.of(found.setdefault(part.name, values.new_empty(part.shape))).copy_(values)
        return found

    def distribute(self, complete: Mapping[str, Tensor]) -> Iterator[tuple[Fragment, Tensor]]:
        """Every fragment of this rank with its values (numel,) in tensors that their owners give. Collective: yes."""
        if self._replicated:
            received = self._gather([part.of(complete[part.name]) for part in self._parts[self._rank]])
        else:
            cut = [[part.of(complete[part.name]) for part in parts] for parts in self._wanted]
            received = self._send(cut, self._parts)
        for part, values in received:
            yield self._fragments[part.name, part.offset], values

    def _read(self, read: Callable[[Fragment], Tensor], part: _Part) -> Tensor:
        return read(self._fragments[part.name, part.offset]).to(self._device)

    def _send(self, values: list[list[Tensor]], expected: Sequence[Message]) -> Iterator[tuple[_Part, Tensor]]:
        """Sends values to each rank; returns what is expected from each. This rank's own values are not copied."""
        own, values[self._rank] = values[self._rank], []
        others = [[] if rank == self._rank else parts for rank, parts in enumerate(expected)]
        joined = torch.cat([torch.empty(0, device=self._device), *chain(*values)])
        received = all_to_all_flat(joined, [sum(map(Tensor.numel, message)) for message in values], _sizes(others))
        return chain(zip(expected[self._rank], own, strict=True), _cut(received, [*chain(*others)]))

    def _gather(self, own: list[Tensor]) -> Iterator[tuple[_Part, Tensor]]:
        if len(self._parts) == 1:
            return zip(self._parts[0], own, strict=True)
        pieces = all_gather_flat(own, _sizes(self._parts), self._device)
        return chain(*(_cut(piece, parts) for piece, parts in zip(pieces, self._parts, strict=True)))


def _cut(joined: Tensor, parts: Message) -> Iterator[tuple[_Part, Tensor]]:
    return zip(parts, joined.split([part.numel for part in parts]), strict=True)


def _sizes(messages: Sequence[Message]) -> list[int]:
    return [sum(part.numel for part in message) for message in messages]


def _parts_of(batch: Batch) -> list[_Part]:
    return [_Part(one.name, one.shape, one.offset, one.numel) for one in batch.fragments]


def exchanges_of(
    batches: Sequence[Batch], rank: int, device: torch.device, cost: Callable[[str, tuple[int, ...]], int]
) -> list[Exchange]:
    """The exchange of each batch. Collective: yes.

    Args:
        batches: those of this rank; all ranks have equally many.
        rank: this rank.
        device: where messages and complete tensors are.
        cost: work of the update of a tensor with this name and shape, the same on every rank.
    """
    held = list(zip(*gather_objects([_parts_of(batch) for batch in batches]), strict=True))  # batch → rank → parts
    shapes = [{part.name: part.shape for parts in of_batch for part in parts} for of_batch in held]
    costs = [{name: cost(name, shape) for name, shape in of_batch.items()} for of_batch in shapes]
    owners = owners_of(costs, len(held[0]) if held else 1)
    return [
        Exchange(batch.fragments, of_batch, owners, rank, device) for batch, of_batch in zip(batches, held, strict=True)
    ]
