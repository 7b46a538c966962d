"""One run's plan: sizes, steps, hours, memory, communication, data, disk and money, from a config and a device.

Source: FLOPs as in ViT (2010.11929), Table 6: images × epochs × 3 × forward, 2 per multiply-add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipelines.plan import layouts
from pipelines.plan.layouts import Layout, Machine
from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import allowed_worlds, check_world
from pretrain.data.sources import lanes_of
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.errors import ConfigError
from pretrain.models import budget
from pretrain.sharding.memory import GIB, size_text
from pretrain.sharding.micro_batch import RESERVED_BYTES

DEFAULT_MFU = 0.4
DEFAULT_DECODE_RATE = 450.0  # images per second and core
ASSUMED_IMAGE_BYTES = 110_000
ASSUMED_SHARD_BYTES = 256_000_000


@dataclass(frozen=True)
class Assumptions:
    """Values that the user gives, or their defaults."""

    mfu: float = DEFAULT_MFU
    decode_rate: float = DEFAULT_DECODE_RATE
    price: float | None = None


@dataclass(frozen=True)
class DataNeeds:
    """Demands on the data loader; rates are per node."""

    images_per_s: float
    bytes_per_s: float
    cores: float
    processes: int
    num_shards: int
    shards_per_node: int
    epoch_bytes: int
    is_measured: bool


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes on disk for checkpoints."""

    checkpoint_bytes: int
    num_saves: int
    held_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Work:
    """The computation of a run, and how long it takes.

    Attributes:
        parameters, parameters_without_head: of the model.
        train_flops, train_flops_without_head: of the run; recomputation is not counted.
        gpu_hours: of one device.
        days: on all devices.
        images_per_s: of all devices.
        cost: at the given price; None: no price was given.
    """

    parameters: int
    parameters_without_head: int
    train_flops: float
    train_flops_without_head: float
    gpu_hours: float
    days: float
    images_per_s: float
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """Everything that ``plan`` reports.

    Attributes:
        layouts: every way to divide the step among the devices.
        recommended: the best of them; None: nothing fits.
        configured: the largest micro-batch that fits with the configured sharding and policy.
        worlds: valid world sizes, all of which draw the same batches.
        reasons: why this layout is recommended.
    """

    experiment: Experiment
    machine: Machine
    assumptions: Assumptions
    work: Work
    layouts: list[Layout]
    recommended: Layout | None
    configured: Layout | None
    data: DataNeeds
    disk: DiskNeeds
    worlds: list[int]
    reasons: list[str]

    @property
    def num_nodes(self) -> int:
        """The number of nodes; the last one may not be full."""
        return num_nodes(self.machine)


def make_plan(
    experiment: Experiment,
    device: Device,
    num_devices: int,
    assumptions: Assumptions,
    *,
    limit_gib: float | None = None,
) -> Plan:
    """Computes the plan.

    Args:
        experiment: the settings.
        device: what it would run on.
        num_devices: how many of them.
        assumptions: MFU, decoding rate, price.
        limit_gib: memory of one device; None: the device's.

    Raises:
        ConfigError: the batch cannot be divided among the devices (the message lists valid numbers), or the model's
            cost cannot be determined here.
    """
    _require_something_to_plan(experiment)
    worlds = _valid_worlds(experiment, num_devices)
    machine = _machine(experiment, device, num_devices, assumptions, limit_gib or device.memory_gib)
    work = _work(experiment, machine, assumptions)
    found = layouts.all_layouts(experiment, machine)
    recommended = layouts.recommend(found)
    return Plan(
        experiment=experiment,
        machine=machine,
        assumptions=assumptions,
        work=work,
        layouts=found,
        recommended=recommended,
        configured=layouts.largest_fitting(found, *layouts.configured_row(experiment)),
        data=_data_needs(experiment, machine, work.images_per_s, assumptions),
        disk=_disk_needs(experiment),
        worlds=worlds,
        reasons=[] if recommended is None else explain(experiment, machine, found, recommended),
    )


def _require_something_to_plan(experiment: Experiment) -> None:
    budget.require_known(experiment.model)
    if not experiment.num_steps:
        raise ConfigError(f"duration: {experiment.duration} is less than one step; make it longer")


def _valid_worlds(experiment: Experiment, num_devices: int) -> list[int]:
    batch, num_lanes = experiment.global_batch_size, lanes_of(experiment)
    check_world(batch, num_lanes, num_devices)
    return allowed_worlds(batch, num_lanes, batch)


def _work(experiment: Experiment, machine: Machine, assumptions: Assumptions) -> Work:
    model, num_outputs = experiment.model, experiment.num_outputs
    images = experiment.num_steps * experiment.global_batch_size
    train_flops = budget.training_flops(model, num_outputs, images)
    seconds = train_flops / (machine.flops * machine.num_devices)
    gpu_hours = train_flops / machine.flops / 3600
    return Work(
        parameters=budget.num_parameters(model, num_outputs),
        parameters_without_head=budget.num_parameters(model, num_outputs, with_head=False),
        train_flops=train_flops,
        train_flops_without_head=6.0 * images * budget.forward_macs(model, num_outputs, with_head=False),
        gpu_hours=gpu_hours,
        days=seconds / 86400,
        images_per_s=images / seconds if seconds else 0.0,
        cost=None if assumptions.price is None else gpu_hours * assumptions.price,
    )


def num_nodes(machine: Machine) -> int:
    """The number of nodes that the devices fill."""
    return math.ceil(machine.num_devices / machine.device.per_node)


def _machine(
    experiment: Experiment, device: Device, num_devices: int, assumptions: Assumptions, memory_gib: float
) -> Machine:
    alone = num_devices <= device.per_node
    return Machine(
        device=device,
        num_devices=num_devices,
        limit_bytes=int(memory_gib * GIB) - RESERVED_BYTES,
        flops=device.peak_flops(experiment.precision) * assumptions.mfu,
        # Between nodes, a ring passes through each node once, so all network devices of a node serve one collective.
        link_bytes_s=1e9 * min(device.link_gb_s, device.link_gb_s if alone else device.network_gb_s * device.per_node),
    )


def _data_needs(experiment: Experiment, machine: Machine, rate: float, assumptions: Assumptions) -> DataNeeds:
    data, nodes = experiment.data, num_nodes(machine)
    folders = [Path(source.shards) for source in data.sources]
    if known := all((folder / TABLE_FILE).exists() for folder in folders):
        tables = [ShardTable.load(folder) for folder in folders]
        num_shards = sum(len(table.rows) for table in tables)
        epoch_bytes = sum(
            source.drawn_samples * sum(row.num_bytes for row in table.rows) / table.num_samples
            for source, table in zip(data.sources, tables, strict=True)
        )
    else:
        num_shards = math.ceil(data.num_samples * ASSUMED_IMAGE_BYTES / ASSUMED_SHARD_BYTES)
        epoch_bytes = data.drawn_samples * ASSUMED_IMAGE_BYTES
    per_node = rate / nodes
    ranks = min(machine.num_devices, machine.device.per_node)
    return DataNeeds(
        images_per_s=per_node,
        bytes_per_s=per_node * epoch_bytes / data.drawn_samples,
        cores=per_node / assumptions.decode_rate,
        processes=max(1, experiment.cluster.num_workers) * ranks,
        num_shards=num_shards,
        shards_per_node=math.ceil(num_shards / nodes),
        epoch_bytes=round(epoch_bytes),
        is_measured=known,
    )


def _disk_needs(experiment: Experiment) -> DiskNeeds:
    """Slices hold fp32 weights and optimiser states; plain weights, and EMA weights if there are any, come on top."""
    parameters = budget.num_parameters(experiment.model, experiment.num_outputs)
    averaged = experiment.optim.ema_decay is not None
    slices = 4 * parameters * (1 + math.ceil(experiment.optim.num_states))
    size = slices + 4 * parameters * (2 if averaged else 1)
    every = max(1, experiment.steps(experiment.checkpoint.every))
    saves = math.ceil(experiment.num_steps / every)
    held = min(saves, experiment.checkpoint.keep_last) + 1  # the next one is written before the oldest is deleted
    return DiskNeeds(size, saves, held * size, saves * size)


def explain(experiment: Experiment, machine: Machine, found: list[Layout], chosen: Layout) -> list[str]:
    """Why this layout is recommended."""
    reasons = [_why_stage(machine, found, chosen)]
    if chosen.policy == "none":
        reasons.append(
            f"checkpointing none: the activations of {chosen.micro_batch_size} images fit "
            f"({size_text(chosen.memory.activations + chosen.memory.working)}), so nothing needs to be computed twice"
        )
    else:
        reasons.append(
            f"checkpointing {chosen.policy}: without it no micro-batch of this size fits; it adds "
            f"{chosen.recomputed:.0%} to the FLOPs of a step"
        )
    reasons.append(
        f"micro-batch {chosen.micro_batch_size}: the largest even divisor of the "
        f"{experiment.global_batch_size // machine.num_devices} images per device that fits"
        if experiment.cluster.micro_batch_size == "auto"
        else f"micro-batch {chosen.micro_batch_size}: as configured"
    )
    return reasons


def _why_stage(machine: Machine, found: list[Layout], chosen: Layout) -> str:
    held = chosen.memory.state + chosen.memory.gradients
    text = f"{chosen.sharding.name}: weights, gradients and optimiser take {size_text(held)} per device"
    if not chosen.sharding.keeps_complete_weights:
        return f"{text}; with less sharding no micro-batch fits, or the step is longer"
    others = [
        layout for layout in found if not layout.sharding.keeps_complete_weights and layout.policy == chosen.policy
    ]
    if not others:
        return text
    other = min(others, key=lambda layout: abs(layout.micro_batch_size - chosen.micro_batch_size))
    saved = chosen.memory.peak - other.memory.peak
    return (
        f"{text} of {size_text(machine.limit_bytes)}. {other.sharding.name} is needless here: it would gather every "
        "layer's weights before their use, to "
        + (f"free {size_text(saved)}" if saved > 0 else "free nothing (its own buffers and copies take what it saves)")
        + f"; a step is estimated at {other.step_s:.3g} s instead of {chosen.step_s:.3g} s"
    )
