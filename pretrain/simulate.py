"""A dry run of one rank of an N-GPU job, on paper: what it would hold, send and read, without the GPUs.

The model is built on the meta device and gets its real optimiser, so that parameter groups and states are those of the
job; from there DeepSpeed's own partitioning is followed. The numbers are checked against measured ones at 2 and 4 ranks
(tests/distributed/test_simulate.py).

Legend: R ranks · b bytes of a weight · P parameters · micro-step = one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.check.experiment import check
from pretrain.check.memory import resolve_micro_batch
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.data.sources import lanes_of, mix, open_sources
from pretrain.data.storage.index import TABLE_FILE
from pretrain.data.storage.location import Location
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model, family_of
from pretrain.optim.optimizers import build_optimizer, ensure_state

FP32 = 4
ALIGNMENT = 2  # DeepSpeed pads the flat groups of stages 1 and 2 to so many elements per rank
STAGE3_DEFAULTS = {"stage3_param_persistence_threshold": 100_000, "stage3_max_reuse_distance": 1_000_000_000}
SHOWN_SAMPLES = 8
SHOWN_STEPS = 2


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective moves in a step.

    Attributes:
        kind: all_reduce, all_gather or reduce_scatter.
        what: in words.
        payload: bytes of the whole tensors, over all calls of a step.
    """

    kind: str
    what: str
    payload: int

    def sent(self, world: int) -> float:
        """Bytes that each rank sends when R ranks stand in a ring."""
        return (2 if self.kind == "all_reduce" else 1) * self.payload * (world - 1) / world


@dataclass(frozen=True)
class Held:
    """Bytes on this rank. ``gradients`` is the most that is kept between micro-steps."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        """All of it at once."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


@dataclass(frozen=True)
class Simulation:
    """One rank of a job.

    Attributes:
        world, rank: which.
        num_parameters: P, of the whole model.
        micro_batch_size, accumulation_steps: how this rank's share of the batch is cut.
        held: memory.
        traffic: per optimiser step; scalars that ranks agree on are left out.
        lanes: the first and last lane that this rank draws from.
        batches: for the first steps, the first sample ids of this rank; None: no shards are there to know them.
    """

    world: int
    rank: int
    num_parameters: int
    micro_batch_size: int
    accumulation_steps: int
    held: Held
    traffic: tuple[Traffic, ...]
    lanes: tuple[int, int]
    batches: tuple[tuple[int, ...], ...] | None

    def lines(self, shards: Sequence[str]) -> list[str]:
        """The report."""
        held, sent = self.held, sum(one.sent(self.world) for one in self.traffic)
        first, last = self.lanes
        lines = [
            f"rank {self.rank} of {self.world}, on paper",
            f"batch       {self.micro_batch_size * self.accumulation_steps} images per rank and step: micro-batch "
            f"{self.micro_batch_size} × accumulation {self.accumulation_steps}; lanes {first} to {last}",
            f"weights     {_size(held.weights)} of {self.num_parameters:,} parameters",
            f"gradients   {_size(held.gradients)}",
            f"optimiser   {_size(held.optimizer)} (states and fp32 master weights)",
            *([f"average     {_size(held.ema)}"] if held.ema else []),
            f"activations {_size(held.activations)} for a micro-batch, by the cost model",
            f"together    {_size(held.total)}, without buckets, allocator and CUDA context",
        ]
        lines += [f"{one.kind:<15} {_size(one.payload)} per step: {one.what}" for one in self.traffic]
        lines.append(f"sent        {_size(round(sent))} per step by this rank, in a ring")
        if self.batches is None:
            lines.append(f"samples     not known: no shards in {', '.join(shards)}, whose index decides the order")
        for step, ids in enumerate(self.batches or ()):
            lines.append(f"samples     step {step}: {', '.join(map(str, ids))}, …")
        return lines


def simulate(resolved: Resolved, world: int, rank: int, *, backend: str) -> Simulation:
    """One rank of a job of ``world`` ranks.

    Args:
        resolved: the loaded config; its cluster.num_devices is not looked at.
        world: R.
        rank: which of them.
        backend: deepspeed or accelerate.

    Raises:
        ConfigError: R ranks cannot share the batch (the numbers that can are listed), no such rank, or anything else
            that ``check`` refuses.
        DataError: as ``check``.
    """
    experiment = resolved.experiment
    if not 0 <= rank < world:
        raise ConfigError(f"--simulate-rank: {rank} is no rank of {world}; ranks are 0 to {world - 1}")
    cluster = experiment.cluster.model_copy(update={"num_devices": "auto"})
    anywhere = replace(resolved, experiment=experiment.model_copy(update={"cluster": cluster}))
    check(anywhere, world=world, backend=backend)  # type: ignore[arg-type]
    num_lanes = lanes_of(experiment)
    micro, accumulation = resolve_micro_batch(experiment, world, backend=backend)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = build_model(experiment.model, experiment.num_outputs)
    stage = experiment.cluster.zero_stage if backend == "deepspeed" else 0
    state = _State(experiment, model, world, stage)
    return Simulation(
        world=world,
        rank=rank,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        held=state.held(_activation_bytes(experiment, micro)),
        traffic=tuple(state.traffic(accumulation)) if world > 1 else (),
        lanes=_own_lanes(num_lanes, rank, world),
        batches=_batches(experiment, num_lanes, rank, world),
    )


class _State:
    """How weights, gradients and optimiser state are cut at one ZeRO stage."""

    def __init__(self, experiment: Experiment, model: nn.Module, world: int, stage: int) -> None:
        self._experiment, self._world, self._stage = experiment, world, stage
        self._weight_bytes = 2 if experiment.precision == "bf16" else FP32
        self._optimizer = build_optimizer(model, experiment.optim)
        self._sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        self._num_trained = sum(self._sizes)
        self._num_frozen = sum(parameter.numel() for parameter in model.parameters()) - self._num_trained
        groups = [[parameter.numel() for parameter in group["params"]] for group in self._optimizer.param_groups]
        self._padded = [_round_up(sum(group), ALIGNMENT * world) for group in groups]
        zero = experiment.cluster.deepspeed.get("zero_optimization", {})
        self._options = {key: zero.get(key, default) for key, default in STAGE3_DEFAULTS.items()}
        threshold = self._options["stage3_param_persistence_threshold"]
        self._persistent = [_round_up(size, world) for size in self._sizes if size <= threshold]

    def held(self, activations: int) -> Held:
        """Bytes of everything that this rank keeps."""
        share = self._share()
        width = self._weight_bytes
        weights = {0: self._num_trained, 1: sum(self._padded), 2: sum(self._padded), 3: share + sum(self._persistent)}
        gradients = {0: self._num_trained, 1: self._num_trained, 2: share, 3: share}
        master = FP32 * share if self._stage else 0  # at stage 0 the fp32 weights are their own master
        ema = 0 if self._experiment.optim.ema_decay is None else FP32 * share
        return Held(
            weights=width * (weights[self._stage] + self._num_frozen),
            gradients=width * gradients[self._stage],
            optimizer=master + self._state_bytes(),
            ema=ema,
            activations=activations,
        )

    def traffic(self, accumulation: int) -> list[Traffic]:
        """What this rank takes part in during one optimiser step."""
        width, world = self._weight_bytes, self._world
        if self._stage < 3:
            times = accumulation if self._stage == 2 else 1
            reduced = Traffic("all_reduce", "gradients", width * self._num_trained * times)
            updated = Traffic("all_gather", "updated weights", width * sum(self._padded))
            return [reduced, updated] if self._stage else [reduced]
        whole = width * sum(_round_up(size, world) for size in self._sizes)
        kept = width * sum(self._persistent)
        passes = [
            Traffic("all_gather", "weights, for forward and backward passes", width * self._gathered() * accumulation),
            Traffic("reduce_scatter", "gradients", whole * accumulation),
        ]
        updated = Traffic("all_gather", "updated small weights, kept whole", kept)
        return [one for one in [*passes, updated] if one.payload]

    def _gathered(self) -> int:
        """Elements gathered in one micro-step at stage 3.

        A weight is let go after the forward pass, and gathered again for the backward pass, if at least
        ``stage3_max_reuse_distance`` elements are used in between: the later layers, twice.
        """
        threshold, farthest = self._options.values()
        later, total = 0, 0
        for size in reversed(self._sizes):
            if size > threshold:
                total += _round_up(size, self._world) * (2 if 2 * later >= farthest else 1)
            later += size
        return total

    def _share(self) -> int:
        """fp32 weights that this rank updates, padding included."""
        if self._stage == 0:
            return self._num_trained
        if self._stage == 3:
            return sum(-(-size // self._world) for size in self._sizes)
        return sum(self._padded) // self._world

    def _state_bytes(self) -> int:
        """Of the optimiser's tensors for what this rank updates."""
        storages: list[Tensor] = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        if self._stage:
            storages = [torch.empty(self._share(), device="meta")]
        states: list[dict[str, Any]] = [ensure_state(self._optimizer, storage) for storage in storages]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor) and value.ndim]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _activation_bytes(experiment: Experiment, micro_batch_size: int) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass (of timm's models the most at once)."""
    settings: Any = {"precision": experiment.precision, "checkpointing": experiment.cluster.activation_checkpointing}
    footprint = family_of(experiment.model).footprint(experiment.model, experiment.num_outputs, **settings)
    return micro_batch_size * footprint.kept


def _own_lanes(num_lanes: int, rank: int, world: int) -> tuple[int, int]:
    if num_lanes % world == 0:
        own = num_lanes // world
        return rank * own, (rank + 1) * own - 1
    shared = rank // (world // num_lanes)  # neighbouring ranks share a lane
    return shared, shared


def _batches(experiment: Experiment, num_lanes: int, rank: int, world: int) -> tuple[tuple[int, ...], ...] | None:
    size = experiment.global_batch_size
    places = [Location.parse(source.shards) for source in experiment.data.sources]
    if any(place.is_remote or not (Path(place.base) / TABLE_FILE).exists() for place in places):
        return None
    order = mix(open_sources(experiment), experiment, num_lanes)
    stop = min(SHOWN_SAMPLES, size // world)
    draws = (order.batch(step * size, rank, world, stop=stop).sample_ids for step in range(SHOWN_STEPS))
    return tuple(tuple(ids.tolist()) for ids in draws)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.2f} MiB"
