"""The start from a fast checkpoint: which one all ranks agree on, and how its parts get to where they are needed.

Every part on every node is verified, on all ranks of a node at once. The newest checkpoint of which the parts of all
ranks are intact on any nodes is chosen; parts of different checkpoints are never combined, not even of the same step.
A rank that has its own part, or its neighbour's copy, on its node reads it there; otherwise a node that has it sends
it. With another number of ranks or another sharding, every node gets all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from pretrain.distributed.collectives import gather_objects, raise_together
from pretrain.distributed.neighbours import Parcel, PeerLost, Sink
from pretrain.engine.backend import HeldSlice
from pretrain.engine.fast_folder import Arrival, Key
from pretrain.engine.fast_saving import FastTier
from pretrain.engine.loading import norms_of
from pretrain.engine.slices import SliceReader, rank_file
from pretrain.errors import CheckpointError

REMEDY = "to resume from the shared disk instead, set checkpoint.fast: null"


@dataclass(frozen=True)
class Found:
    """A fast checkpoint that is complete and intact.

    Attributes:
        key: which one.
        marker: as in COMPLETE.json, without files.
        holders: rank that wrote a part → the nodes that have it.
    """

    key: Key
    marker: dict[str, Any]
    holders: dict[int, tuple[int, ...]]

    def on(self, node: int) -> list[int]:
        """The parts on a node."""
        return [rank for rank, nodes in self.holders.items() if node in nodes]


def newest_fast(tier: FastTier) -> Found | None:
    """The newest fast checkpoint that is complete on the nodes of this job, or None. Collective: yes.

    Raises:
        CheckpointError: a node's folder cannot be written.
    """
    keys = sorted({key for keys in gather_objects(_keys(tier)) for key in keys}, reverse=True)
    for key in keys:
        seen = gather_objects(_verified(tier, key))
        intact = {rank: record for own in seen for rank, record, _ in own if record is not None}
        problems = [problem for own in seen for _, _, problem in own if problem is not None]
        for problem in problems:
            tier.session.say(f"fast checkpoint of step {key.step}: {problem}")
        world = next(iter(intact.values()))["marker"]["world_size"] if intact else 0
        missing = [rank for rank in range(world) if rank not in intact]
        if missing or not intact:
            text = f"no node has the parts of ranks {', '.join(map(str, missing))}" if intact else "nothing is intact"
            tier.session.say(f"fast checkpoint of step {key.step}, attempt {key.attempt} is passed over: {text}")
            continue
        return _chosen(tier, key, intact, seen)
    return None


def _keys(tier: FastTier) -> list[Key]:
    try:
        return tier.node.keys()
    except OSError:  # the next save will report it
        return []


def _verified(tier: FastTier, key: Key) -> list[tuple[int, dict[str, Any] | None, str | None]]:
    """(rank that wrote it, record, problem) of the parts that this rank verifies among those of its node."""
    rank, results = tier.session.rank, []
    here = tier.ring.nodes[tier.ring.node_of(rank.rank)]
    try:
        parts = tier.node.ranks(key)[here.index(rank.rank) :: len(here)]
    except OSError:
        return []
    for part in parts:
        try:
            results.append((part, tier.node.read(key, part), None))
        except CheckpointError as error:
            results.append((part, None, f"the part of rank {part} on {rank.host} is damaged: {error}"))
    return results


def _chosen(tier: FastTier, key: Key, intact: Mapping[int, dict[str, Any]], seen: Sequence[Any]) -> Found:
    """Describes the choice and makes each node's folder readable. Collective: yes."""
    first = intact[min(intact)]
    norms = norms_of([intact[rank]["squares"] for rank in sorted(intact)])
    holders: dict[int, set[int]] = {}
    for rank, own in enumerate(seen):
        for part, record, _ in own:
            if record is not None:
                holders.setdefault(part, set()).add(tier.ring.node_of(rank))
    error = None
    if tier.ring.leads(tier.session.rank.rank):
        try:
            tier.node.describe(key, first)
        except OSError as failure:
            error = CheckpointError(f"{tier.node.path} on {tier.session.rank.host}: {failure}; {REMEDY}")
    raise_together(error, doing="preparing a fast checkpoint")
    held = {part: tuple(sorted(nodes)) for part, nodes in sorted(holders.items())}
    return Found(key, {**first["marker"], "norms": norms}, held)


def is_newer(read: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]], found: Found | None) -> bool:
    """Whether another checkpoint is newer than the fast one; True if it is damaged, to have it reported.

    Args:
        read: its marker and position.
        found: the fast checkpoint; None: there is none.
    """
    try:
        return found is None or Key.of(*read()) > found.key
    except CheckpointError:
        return True


def bring(tier: FastTier, found: Found, held: Iterable[HeldSlice]) -> dict[str, Any]:
    """Brings the parts to the nodes that need them. Collective: yes.

    Args:
        tier: of this job.
        found: the checkpoint.
        held: the slices that this rank will fill.

    Returns:
        its marker, with the parts on this node as files.

    Raises:
        CheckpointError: a part could not be sent or written.
    """
    rank, ring = tier.session.rank, tier.ring
    nodes = range(len(ring.nodes))
    have = {node: set(found.on(node)) for node in nodes}
    if found.marker["world_size"] == rank.world:
        _transfer(tier, found, have, {node: ring.nodes[node] for node in nodes})
    own = have[ring.node_of(rank.rank)]
    reader = SliceReader(tier.node.save_path(found.key), sorted(own))
    if not all(gather_objects(all(map(reader.covers, held)))):
        _transfer(tier, found, have, dict.fromkeys(nodes, tuple(found.holders)))
    error = None
    if ring.leads(rank.rank):
        try:
            tier.node.unpack_statistics(found.key, min(own))
        except (OSError, SafetensorError) as failure:
            error = CheckpointError(f"{tier.node.path} on {rank.host}: {failure}; {REMEDY}")
    raise_together(error, doing="preparing a fast checkpoint")
    return {**found.marker, "files": {rank_file(part): {} for part in sorted(own)}}


def _transfer(tier: FastTier, found: Found, have: dict[int, set[int]], wanted: Mapping[int, Sequence[int]]) -> None:
    """Sends every wanted part that a node lacks, one after the other, in one order on all ranks. Collective: yes."""
    error = None
    for node, parts in wanted.items():
        for part in parts:
            if part not in have[node]:
                have[node].add(part)
                try:
                    _send(tier, found, part, node)
                except (PeerLost, OSError, CheckpointError) as failure:
                    error = error or CheckpointError(f"fast checkpoint of step {found.key.step}: {failure}; {REMEDY}")
    raise_together(error, doing="fetching the parts of a fast checkpoint")


def _send(tier: FastTier, found: Found, part: int, node: int) -> None:
    """The first rank of a node that has a part sends it to the first rank of another node."""
    assert tier.channel is not None
    source, target = tier.ring.nodes[found.holders[part][0]][0], tier.ring.nodes[node][0]
    own, arrivals = tier.session.rank.rank, []

    def open_part(head: bytes, num_bytes: int) -> Sink:
        arrivals.append(Arrival(tier.node.part_file(found.key, part), head))
        return arrivals[-1].take

    if own == source:
        tier.channel.exchange(Parcel(*tier.node.sealed(found.key, part)), target, {})
    elif own == target:
        tier.channel.exchange(None, None, {source: open_part})
        arrivals[0].finish()
