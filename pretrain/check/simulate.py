"""Estimates what one rank of an N-GPU job would hold, send and read, without the GPUs.

The numbers come from ``pretrain.sharding``; tests/distributed/test_simulate.py compares them with measurements on 2 and
4 ranks.

Legend: R ranks · P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.check.experiment import check
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.data.sources import lanes_of, mix, open_sources
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.location import Location
from pretrain.errors import ConfigError
from pretrain.models.families.registry import require_known_cost
from pretrain.sharding.choice import resolve_micro_batch, sharding_of
from pretrain.sharding.protocol import Memory, Traffic, size_text
from pretrain.sharding.step import step_of

SHOWN_SAMPLES = 8
SHOWN_STEPS = 2


@dataclass(frozen=True)
class Simulation:
    """One rank of a job.

    Attributes:
        world, rank: number of ranks, and the simulated one.
        num_parameters: P, of the unsharded model.
        micro_batch_size, accumulation_steps: how this rank's share of the batch is divided.
        memory: memory held by the rank.
        traffic: collectives per optimiser step.
        lanes: the first and last lane that this rank draws from.
        batches: for the first steps, the first sample ids of this rank; None: unknown without shards.
    """

    world: int
    rank: int
    num_parameters: int
    micro_batch_size: int
    accumulation_steps: int
    memory: Memory
    traffic: tuple[Traffic, ...]
    lanes: tuple[int, int]
    batches: tuple[tuple[int, ...], ...] | None

    def lines(self, shards: Sequence[str]) -> list[str]:
        """Formats the report; ``shards`` names the locations searched for data."""
        first, last = self.lanes
        lines = [
            f"rank {self.rank} of {self.world}, estimated",
            f"batch       {self.micro_batch_size * self.accumulation_steps} images per rank and step: micro-batch "
            f"{self.micro_batch_size} × accumulation {self.accumulation_steps}; lanes {first} to {last}",
        ]
        notes = {
            "weights": f" of {self.num_parameters:,} parameters",
            "optimiser": " (states and fp32 master weights)",
            "activations": " for a micro-batch",
        }
        lines += [f"{name:<11} {size_text(size)}{notes.get(name, '')}" for name, size in self.memory.parts().items()]
        lines.append(f"peak        {size_text(self.memory.peak)}, without allocator and CUDA context")
        lines += [f"{one.kind:<15} {size_text(one.payload)} per step: {one.what}" for one in self.traffic]
        sent = sum(one.sent(self.world) for one in self.traffic)
        lines.append(f"sent        {size_text(sent)} per step by this rank, in a ring")
        if self.batches is None:
            lines.append(f"samples     not known: no shards in {', '.join(shards)}, whose index decides the order")
        for step, ids in enumerate(self.batches or ()):
            lines.append(f"samples     step {step}: {', '.join(map(str, ids))}, …")
        return lines


def simulate(resolved: Resolved, world: int, rank: int, *, backend: str) -> Simulation:
    """One rank of a job of ``world`` ranks.

    Args:
        resolved: the loaded config; its cluster.num_devices is ignored.
        world: R.
        rank: the simulated rank.
        backend: deepspeed, accelerate or fsdp2.

    Raises:
        ConfigError: R ranks cannot share the batch (the message lists valid world sizes), the rank does not exist, or
            ``check`` refuses the experiment.
        DataError: as ``check``.
    """
    experiment = resolved.experiment
    if not 0 <= rank < world:
        raise ConfigError(f"--simulate-rank: {rank} is not a rank of {world}; ranks are 0 to {world - 1}")
    cluster = experiment.cluster.model_copy(update={"num_devices": "auto"})
    anywhere = replace(resolved, experiment=experiment.model_copy(update={"cluster": cluster}))
    check(anywhere, world=world, backend=backend)
    num_lanes = lanes_of(experiment)
    require_known_cost(experiment.model)
    micro, accumulation = resolve_micro_batch(experiment, world, backend=backend)
    sharding, step = sharding_of(experiment, backend), step_of(experiment, world, micro)
    return Simulation(
        world=world,
        rank=rank,
        num_parameters=step.weights.num_parameters,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        memory=sharding.memory(step),
        traffic=sharding.traffic(step),
        lanes=_own_lanes(num_lanes, rank, world),
        batches=_batches(experiment, num_lanes, rank, world),
    )


def _own_lanes(num_lanes: int, rank: int, world: int) -> tuple[int, int]:
    if num_lanes % world == 0:
        own = num_lanes // world
        return rank * own, (rank + 1) * own - 1
    shared = rank // (world // num_lanes)  # neighbouring ranks share a lane
    return shared, shared


def _batches(experiment: Experiment, num_lanes: int, rank: int, world: int) -> tuple[tuple[int, ...], ...] | None:
    batches = experiment.batches
    places = [Location.parse(source.shards) for source in experiment.data.sources]
    if any(place.is_remote or not (Path(place.base) / TABLE_FILE).exists() for place in places):
        return None
    order = mix(open_sources(experiment), experiment, num_lanes)
    stop = min(SHOWN_SAMPLES, batches.unit // world)
    draws = (order.batch(batches.before(step), rank, world, stop=stop).sample_ids for step in range(SHOWN_STEPS))
    return tuple(tuple(ids.tolist()) for ids in draws)
