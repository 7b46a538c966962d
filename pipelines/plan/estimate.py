"""One run's plan: sizes, steps, hours, memory, communication, data, disk and money, from a config and a device.

Source: FLOPs as in ViT (2010.11929), Table 6: images × epochs × 3 × forward, 2 per multiply-add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.plan import layouts
from pipelines.plan.layouts import Layout, Machine
from pretrain.check.memory import GIB, RESERVED_BYTES
from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import allowed_worlds, check_world
from pretrain.data.sources import lanes_of
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.errors import ConfigError
from pretrain.models import budget

DEFAULT_MFU = 0.4
DEFAULT_DECODE_RATE = 450.0  # images per second and core
ASSUMED_IMAGE_BYTES = 110_000
ASSUMED_SHARD_BYTES = 256_000_000


@dataclass(frozen=True)
class Assumptions:
    """What the user says, or what is assumed for want of it."""

    mfu: float = DEFAULT_MFU
    decode_rate: float = DEFAULT_DECODE_RATE
    price: float | None = None


@dataclass(frozen=True)
class DataNeeds:
    """What the loader must deliver. Rates are of one node."""

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
    """What is written."""

    checkpoint_bytes: int
    num_saves: int
    held_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything that ``plan`` says."""

    experiment: Experiment
    machine: Machine
    assumptions: Assumptions
    parameters: int
    parameters_without_head: int
    train_flops: float
    train_flops_without_head: float
    gpu_hours: float
    days: float
    images_per_s: float
    layouts: list[Layout]
    recommended: Layout | None
    configured: Layout | None
    data: DataNeeds
    disk: DiskNeeds
    worlds: list[int]
    num_lanes: int
    cost: float | None
    reasons: list[str] = field(default_factory=list)

    @property
    def num_nodes(self) -> int:
        """Nodes, the last one perhaps not full."""
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
        ConfigError: the devices cannot share the batch; names the numbers that can.
    """
    _check_model(experiment)
    num_lanes = lanes_of(experiment)
    check_world(experiment.global_batch_size, num_lanes, num_devices)
    machine = _machine(experiment, device, num_devices, assumptions, limit_gib or device.memory_gib)
    model, num_outputs = experiment.model, experiment.num_outputs
    images = experiment.num_steps * experiment.global_batch_size
    train_flops = budget.training_flops(model, num_outputs, images)
    seconds = train_flops / (machine.flops * num_devices)
    found = layouts.all_layouts(experiment, machine)
    recommended = layouts.recommend(found)
    gpu_hours = train_flops / machine.flops / 3600
    rate = images / seconds if seconds else 0.0
    return Plan(
        experiment=experiment,
        machine=machine,
        assumptions=assumptions,
        parameters=budget.num_parameters(model, num_outputs),
        parameters_without_head=budget.num_parameters(model, num_outputs, with_head=False),
        train_flops=train_flops,
        train_flops_without_head=6.0 * images * budget.forward_macs(model, num_outputs, with_head=False),
        gpu_hours=gpu_hours,
        days=seconds / 86400,
        images_per_s=rate,
        layouts=found,
        recommended=recommended,
        configured=layouts.largest_fitting(
            found, experiment.cluster.zero_stage, experiment.cluster.activation_checkpointing
        ),
        data=_data_needs(experiment, machine, rate, assumptions),
        disk=_disk_needs(experiment),
        worlds=allowed_worlds(experiment.global_batch_size, num_lanes, experiment.global_batch_size),
        num_lanes=num_lanes,
        cost=None if assumptions.price is None else gpu_hours * assumptions.price,
        reasons=[] if recommended is None else explain(experiment, machine, found, recommended),
    )


def num_nodes(machine: Machine) -> int:
    """Nodes that the devices fill."""
    return math.ceil(machine.num_devices / machine.device.per_node)


def _check_model(experiment: Experiment) -> None:
    if not budget.can_tell(experiment.model):
        raise ConfigError(
            f"model.name: the size and cost of {experiment.model.name} are measured on torch's meta device, without "
            "weights or data: install torch and timm for it, or plan a model of name: vit"
        )
    if not experiment.num_steps:
        raise ConfigError(f"duration: {experiment.duration} is less than one step; make it longer")


def _machine(
    experiment: Experiment, device: Device, num_devices: int, assumptions: Assumptions, memory_gib: float
) -> Machine:
    alone = num_devices <= device.per_node
    return Machine(
        device=device,
        num_devices=num_devices,
        limit_bytes=int(memory_gib * GIB) - RESERVED_BYTES,
        flops=device.peak_flops(experiment.precision) * assumptions.mfu,
        # Between nodes a ring runs through each node once, so that all of its network devices serve one collective.
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
    """Slices hold fp32 weights and every state; beside them lie plain weights, and the averaged ones if there are."""
    parameters = budget.num_parameters(experiment.model, experiment.num_outputs)
    averaged = experiment.optim.ema_decay is not None
    slices = 4 * parameters * (1 + math.ceil(experiment.optim.num_states))
    size = slices + 4 * parameters * (2 if averaged else 1)
    every = max(1, experiment.steps(experiment.checkpoint.every))
    saves = math.ceil(experiment.num_steps / every)
    held = min(saves, experiment.checkpoint.keep_last) + 1  # the next one is written before the oldest goes
    return DiskNeeds(size, saves, held * size, saves * size)


def explain(experiment: Experiment, machine: Machine, found: list[Layout], chosen: Layout) -> list[str]:
    """Why this layout, and why no other."""
    reasons = [_why_stage(machine, found, chosen)]
    if chosen.policy == "none":
        reasons.append(
            f"checkpointing none: the activations of {chosen.micro_batch_size} images fit "
            f"({gib(chosen.memory.activations)}), so nothing needs to be computed twice"
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
    held = chosen.memory.weights + chosen.memory.optimizer + chosen.memory.gradients
    text = f"ZeRO-{chosen.zero_stage}: weights, gradients and optimiser take {gib(held)} per device"
    stage_3 = [layout for layout in found if layout.zero_stage == 3 and layout.policy == chosen.policy]
    if chosen.zero_stage == 3:
        return f"{text}; at lower stages no micro-batch fits, or the step is longer"
    if not stage_3:
        return text
    other = min(stage_3, key=lambda layout: abs(layout.micro_batch_size - chosen.micro_batch_size))
    saved = chosen.memory.peak - other.memory.peak
    return (
        f"{text} of {gib(machine.limit_bytes)}. ZeRO-3 is needless here: it would gather every layer's weights before "
        "their use, to "
        + (f"free {gib(saved)}" if saved > 0 else "free nothing (what it saves, its own buffers and copies take)")
        + f"; a step is estimated at {other.step_s:.3g} s instead of {chosen.step_s:.3g} s"
    )


def gib(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / GIB:,.1f} GiB" if abs(num_bytes) >= GIB else f"{num_bytes / 2**20:,.1f} MiB"
