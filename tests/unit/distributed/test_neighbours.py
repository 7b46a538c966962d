"""The ring of nodes, and the files that ranks send around it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pretrain.disk import BLOCK_BYTES
from pretrain.distributed import neighbours
from pretrain.distributed.neighbours import Parcel, PeerLost, Ring, SideChannel
from pretrain.distributed.rank import detect
from tests.pool import Pool

UNEQUAL = Ring(((0, 1, 2), (3, 4), (5,)), ("a", "b", "c"))
SIZES = [0, 1, BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1]


def test_a_copy_is_always_on_the_next_node() -> None:
    receivers = [UNEQUAL.receiver(rank) for rank in range(6)]
    assert receivers == [3, 4, 3, 5, 5, 0]
    assert [UNEQUAL.senders(rank) for rank in range(6)] == [[5], [], [], [0, 2], [1], [3, 4]]
    assert [rank for rank in range(6) if UNEQUAL.leads(rank)] == [0, 3, 5]
    assert Ring(((0, 1),), ("a",)).receiver(0) is None


def ring_of(hosts: list[str]) -> Ring:
    rank = detect()
    return Ring.of(replace(rank, host=hosts[rank.rank]))


def test_ranks_of_one_host_are_one_node(pool4: Pool) -> None:
    rings = pool4.run(ring_of, ["x", "y", "x", "z"])
    assert set(rings) == {Ring(((0, 2), (1,), (3,)), ("x", "y", "z"))}


def content(rank: int) -> bytes:
    return bytes([rank + 1]) * SIZES[rank]


def pass_around(to: list[int | None]) -> dict[int, tuple[bytes, bytes]]:
    """Each rank sends its content; returns what arrived here, with its head."""
    rank, arrived = detect().rank, {}

    def opened(source: int):  # type: ignore[no-untyped-def]
        def begin(head: bytes, num_bytes: int):  # type: ignore[no-untyped-def]
            assert num_bytes == SIZES[source]
            arrived[source] = (head, bytearray())
            return arrived[source][1].extend

        return begin

    channel = SideChannel()
    data = content(rank)
    parts = [data[start : start + 1_000_000] for start in range(0, len(data), 1_000_000)]
    own = None if rank == 3 else Parcel(f"head of {rank}".encode(), len(data), parts)
    channel.exchange(own, to[rank], {source: opened(source) for source, target in enumerate(to) if target == rank})
    channel.close()
    return {source: (head, bytes(data)) for source, (head, data) in arrived.items()}


def test_files_of_all_sizes_arrive_while_others_leave(pool4: Pool) -> None:
    """Rank 3 has nothing to send, and rank 0 receives from two."""
    arrived = pool4.run(pass_around, [1, 0, 0, 2])
    assert arrived == [
        {1: (b"head of 1", content(1)), 2: (b"head of 2", content(2))},
        {0: (b"head of 0", b"")},
        {},
        {},
    ]


def wait_for_nobody() -> str:
    limit, neighbours.LIMIT_S = neighbours.LIMIT_S, 0.5
    channel, said = SideChannel(), ""
    try:
        if detect().rank == 0:
            channel.exchange(None, None, {1: lambda head, num_bytes: lambda block: None})
    except PeerLost as error:
        said = str(error)
    finally:
        neighbours.LIMIT_S = limit
    return said


def test_a_peer_that_sends_nothing_ends_a_transfer_in_bounded_time(pool2: Pool) -> None:
    said = pool2.run(wait_for_nobody, timeout_s=60)
    assert "no connection with rank 1" in said[0] and said[1] == ""


@pytest.mark.parametrize("announced", [3, 5])
def test_a_file_of_another_size_than_announced_is_our_bug(announced: int) -> None:
    with pytest.raises(AssertionError):
        list(neighbours._whole_blocks(Parcel(b"", announced, [b"four"])))
