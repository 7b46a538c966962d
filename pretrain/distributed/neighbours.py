"""The nodes of a job as a ring, and files that ranks send to each other beside the training.

They travel through a gloo group of their own, made at the start. At any time at most one thread of a rank uses it, and
all ranks use it in the same order, so its messages never meet those of the training. A peer that is dead or stuck ends
a transfer within LIMIT_S.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.disk import BLOCK_BYTES
from pretrain.distributed.collectives import gather_objects
from pretrain.distributed.processes import Identity
from pretrain.distributed.rank import Rank

LIMIT_S = 120.0  # until a peer takes or gives the next block
_NOTHING = -1

Sink = Callable[[bytes], None]
Opened = Callable[[bytes, int], Sink]


class PeerLost(Exception):
    """A transfer failed because of the connection or the peer; the group cannot be used any more."""


@dataclass(frozen=True)
class Parcel:
    """A file to send: ``head`` describes it to the receiver, ``blocks`` are its ``num_bytes`` bytes in order."""

    head: bytes
    num_bytes: int
    blocks: Iterable[bytes]


@dataclass(frozen=True)
class Ring:
    """The nodes of a job.

    Attributes:
        nodes: the ranks of each node, ascending; the nodes in the order of their first rank.
        hosts: the name of each node.
    """

    nodes: tuple[tuple[int, ...], ...]
    hosts: tuple[str, ...]

    @classmethod
    def of(cls, rank: Rank) -> Ring:
        """The ring of this job. Containers with memory of their own are nodes. Collective: yes."""
        nodes: dict[tuple[str, str | None], list[int]] = {}
        for number, node in enumerate(gather_objects((rank.host, Identity.own().boot_id))):
            nodes.setdefault(node, []).append(number)
        return cls(tuple(map(tuple, nodes.values())), tuple(host for host, _ in nodes))

    def node_of(self, rank: int) -> int:
        """The number of a rank's node."""
        return next(number for number, ranks in enumerate(self.nodes) if rank in ranks)

    def leads(self, rank: int) -> bool:
        """Whether the rank is the first of its node."""
        return any(ranks[0] == rank for ranks in self.nodes)

    def receiver(self, rank: int) -> int | None:
        """The rank on the next node that gets this rank's copies; None if there is only one node."""
        if len(self.nodes) == 1:
            return None
        node = self.node_of(rank)
        following = self.nodes[(node + 1) % len(self.nodes)]
        return following[self.nodes[node].index(rank) % len(following)]

    def senders(self, rank: int) -> list[int]:
        """The ranks whose copies this rank gets."""
        return [other for ranks in self.nodes for other in ranks if self.receiver(other) == rank]


class SideChannel:
    """Transfers between ranks; see the module. Collective: its creation."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")

    def close(self) -> None:
        """Ends the group of this rank."""
        dist.destroy_process_group(self._group)

    def exchange(self, parcel: Parcel | None, to: int | None, sources: Mapping[int, Opened]) -> None:
        """Sends a file to one rank and receives one from each of some others, all at the same time.

        Args:
            parcel: the file; None: the receiver learns that there is none.
            to: the rank that gets it; None: nobody.
            sources: sending rank → is called with head and size of its file, and returns what takes its blocks.

        Raises:
            PeerLost: a peer did not take or give a block within LIMIT_S, or the connection broke.
        """
        head = parcel.head if parcel is not None else b""
        num_bytes = _NOTHING if parcel is None else parcel.num_bytes
        sizes = {source: torch.empty(2, dtype=torch.int64) for source in sources}
        self._pass(to, torch.tensor([len(head), num_bytes]), sizes)
        given = {source: (int(size[0]), int(size[1])) for source, size in sizes.items() if int(size[1]) != _NOTHING}
        heads = {source: torch.empty(length, dtype=torch.uint8) for source, (length, _) in given.items()}
        self._pass(None if parcel is None else to, _as_tensor(head), heads)
        sinks = {source: sources[source](heads[source].numpy().tobytes(), given[source][1]) for source in given}
        left = {source: size for source, (_, size) in given.items()}
        blocks = iter(()) if parcel is None or to is None else _whole_blocks(parcel)
        block: bytes | None = next(blocks, None)
        while block is not None or any(left.values()):
            buffers = {
                source: torch.empty(min(size, BLOCK_BYTES), dtype=torch.uint8) for source, size in left.items() if size
            }
            self._pass(None if block is None else to, _as_tensor(block or b""), buffers)
            for source, buffer in buffers.items():
                left[source] -= buffer.numel()
                sinks[source](buffer.numpy().tobytes())
            block = next(blocks, None)

    def _pass(self, to: int | None, out: Tensor, into: Mapping[int, Tensor]) -> None:
        """Sends one tensor while receiving others."""
        limit = datetime.timedelta(seconds=LIMIT_S)
        try:
            works = [dist.irecv(tensor, source, group=self._group) for source, tensor in into.items() if tensor.numel()]
            if to is not None and out.numel():
                works.append(dist.isend(out, to, group=self._group))
            for work in works:
                if work is not None:
                    work.wait(limit)
        except RuntimeError as error:
            peers = sorted({*into, *(() if to is None else (to,))})
            raise PeerLost(f"no connection with rank {' or '.join(map(str, peers))}: {error}") from error


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _whole_blocks(parcel: Parcel) -> Iterator[bytes]:
    """The file in blocks of BLOCK_BYTES, the last one shorter, and exactly as long as announced."""
    rest, left = b"", parcel.num_bytes
    for part in parcel.blocks:
        rest += part
        while len(rest) >= BLOCK_BYTES:
            yield rest[:BLOCK_BYTES]
            rest, left = rest[BLOCK_BYTES:], left - BLOCK_BYTES
    if rest:
        yield rest
    assert left == len(rest), "a file that is being sent has changed"
