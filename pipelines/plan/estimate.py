"""One run's plan: sizes, steps, hours, memory, communication, data, disk and money, from a config and a device.

Source: FLOPs as in ViT (2010.11929), Table 6: images × epochs × 3 × forward, 2 per multiply-add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipelines.plan import layouts
from pipelines.plan.disk import DiskNeeds, disk_needs
from pipelines.plan.fast_checkpoints import FastNeeds, fast_needs
from pipelines.plan.layouts import Layout, Machine
from pipelines.plan.mirror import DEFAULT_STORE_GB_S, MirrorNeeds, mirror_needs
from pretrain.check.experiment import too_short
from pretrain.check.files import require_counts
from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import allowed_worlds, check_world
from pretrain.data.sources import lanes_of
from pretrain.data.storage.index import TABLE_FILE, ShardTable
from pretrain.errors import ConfigError
from pretrain.models.families.registry import forward_macs, num_parameters, require_known_cost
from pretrain.sharding.choice import RESERVED_BYTES
from pretrain.sharding.protocol import GIB
from pretrain.sharding.teacher import not_counted
from pretrain.sharding.work import flops_by_tiling, image_flops

DEFAULT_MFU = 0.4
DEFAULT_DECODE_RATE = 450.0  # images per second and core
ASSUMED_IMAGE_BYTES = 110_000
ASSUMED_SHARD_BYTES = 256_000_000


@dataclass(frozen=True)
class Assumptions:
    """Values that the user gives, or their defaults; ``store_gb_s`` is GB/s of a node to or from an object store."""

    mfu: float = DEFAULT_MFU
    decode_rate: float = DEFAULT_DECODE_RATE
    price: float | None = None
    store_gb_s: float | None = None


@dataclass(frozen=True)
class DataNeeds:
    """Demands on the data loader, while images have the size that trains fastest; rates are per node."""

    images_per_s: float
    bytes_per_s: float
    cores: float
    processes: int
    num_shards: int
    shards_per_node: int
    epoch_bytes: int
    is_measured: bool


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
        fast, mirror: None: there are no fast checkpoints; no copies in an object store.
        elsewhere: what another backend would do better; None: nothing.
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
    elsewhere: Layout | None
    configured: Layout | None
    data: DataNeeds
    disk: DiskNeeds
    fast: FastNeeds | None
    mirror: MirrorNeeds | None
    worlds: list[int]
    reasons: list[str]

    @property
    def num_nodes(self) -> int:
        """The number of nodes; the last one may not be full."""
        return self.machine.num_nodes


# long: one line for each part of the plan
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
        device, num_devices: what it would run on, and how many of them.
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
    disk = disk_needs(experiment, work.images_per_s)
    return Plan(
        experiment=experiment,
        machine=machine,
        assumptions=assumptions,
        work=work,
        layouts=found,
        recommended=recommended,
        elsewhere=layouts.better_elsewhere(experiment, machine, recommended),
        configured=layouts.largest_fitting(found, *layouts.configured_row(experiment)),
        data=_data_needs(experiment, machine, _fastest(experiment, work), assumptions),
        disk=disk,
        fast=fast_needs(experiment, machine, work.images_per_s),
        mirror=mirror_needs(experiment, machine, disk, assumptions.store_gb_s),
        worlds=worlds,
        reasons=[] if recommended is None else layouts.explain(experiment, machine, found, recommended),
    )


def _require_something_to_plan(experiment: Experiment) -> None:
    require_known_cost(experiment.model)
    if not experiment.num_steps:
        raise ConfigError(f"duration: {too_short(experiment, experiment.duration)}")


def _valid_worlds(experiment: Experiment, num_devices: int) -> list[int]:
    batch, num_lanes = experiment.batches.unit, lanes_of(experiment)
    check_world(batch, num_lanes, num_devices)
    return allowed_worlds(batch, num_lanes, batch)


def _work(experiment: Experiment, machine: Machine, assumptions: Assumptions) -> Work:
    model, num_outputs = experiment.model, experiment.num_outputs
    images = experiment.samples_until(experiment.num_steps)
    train_flops = image_flops(experiment) * images
    of_head = forward_macs(model, num_outputs) - forward_macs(model, num_outputs, with_head=False)
    seconds = train_flops / (machine.flops * machine.num_devices)
    gpu_hours = train_flops / machine.flops / 3600
    return Work(
        parameters=num_parameters(model, num_outputs),
        parameters_without_head=num_parameters(model, num_outputs, with_head=False),
        train_flops=train_flops,
        train_flops_without_head=train_flops - 6.0 * images * of_head,
        gpu_hours=gpu_hours,
        days=seconds / 86400,
        images_per_s=images / seconds if seconds else 0.0,
        cost=None if assumptions.price is None else gpu_hours * assumptions.price,
    )


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


def _fastest(experiment: Experiment, work: Work) -> float:
    """Images per second of all devices, of the size that costs the fewest FLOPs."""
    return work.images_per_s * image_flops(experiment) / min(flops_by_tiling(experiment).values())


def _data_needs(experiment: Experiment, machine: Machine, rate: float, assumptions: Assumptions) -> DataNeeds:
    data, nodes = experiment.data, machine.num_nodes
    folders = [Path(source.shards) for source in data.sources]
    if known := all((folder / TABLE_FILE).exists() for folder in folders):
        tables = [ShardTable.load(folder) for folder in folders]
        for place, (source, table) in enumerate(zip(data.sources, tables, strict=True)):
            key = f"data.mixture.{place}" if data.mixture else "data"
            if source.drop_list is None:
                require_counts(
                    table.folder / TABLE_FILE,
                    f"{key}.shards",
                    [(f"{key}.num_samples", table.num_samples, source.num_samples)],
                )
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
        cores=per_node * experiment.objective.num_views / assumptions.decode_rate,
        processes=max(1, experiment.cluster.num_workers) * ranks,
        num_shards=num_shards,
        shards_per_node=math.ceil(num_shards / nodes),
        epoch_bytes=round(epoch_bytes),
        is_measured=known,
    )


# long: one assumption after the other
def assumed(plan: Plan, given: set[str]) -> list[str]:
    """The assumptions behind a plan, and what has not been measured.

    Args:
        plan: the plan.
        given: the options that the user gave.
    """
    machine, device = plan.machine, plan.machine.device
    lines = []
    if "cluster" not in given:
        lines.append(f"{machine.num_devices} devices, since no --cluster was given")
    if "device" not in given:
        lines.append(f"{device.title}, since no --device was given")
    stated = "as given" if "mfu" in given else f"{DEFAULT_MFU:.0%} by default"
    lines.append(
        f"MFU {plan.assumptions.mfu:.0%} ({stated}) of {device.peak_flops(plan.experiment.precision) / 1e12:,.4g} "
        "TFLOP/s, the vendor's dense rate; this project has measured it on no GPU. Published for such ViTs: 19 % "
        "(L/16, PLSC) and 44 % (g/14, NeMo) on A100, 29 % (g/14, NeMo) on H100"
    )
    link = "the link in the node" if plan.num_nodes == 1 else "all network devices of a node in one ring"
    lines.append(
        f"{machine.link_bytes_s / 1e9:,.4g} GB/s per device ({link}), none of it hidden behind computing; "
        "s/step are estimates for comparing layouts with each other"
    )
    stated = "as given" if "decode_rate" in given else f"{DEFAULT_DECODE_RATE:g} by default"
    lines.append(
        f"{plan.assumptions.decode_rate:g} images per second and CPU core ({stated}: measured on photos of 470 × 400 "
        "pixels and 107 KB, random crop to 224, one core of a server)"
    )
    if not plan.data.is_measured:
        where = " and ".join(source.shards for source in plan.experiment.data.sources) + (
            " is" if len(plan.experiment.data.sources) == 1 else " are"
        )
        lines.append(f"110 KB an image and shards of 256 MB: {where} not here")
    if plan.mirror is not None:
        stated = "as given" if "store_gb_s" in given else f"{DEFAULT_STORE_GB_S:g} by default"
        lines.append(
            f"{plan.mirror.store_gb_s:g} GB/s of each node to and from {plan.experiment.checkpoint.mirror} ({stated})"
        )
    lines += not_counted(plan.experiment)
    lines.append(
        "memory is computed; it agrees with the tensors that live in real steps on CPU ranks, and was never measured "
        "on a GPU"
    )
    return lines
