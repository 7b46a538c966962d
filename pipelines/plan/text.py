"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.plan import layouts
from pipelines.plan.estimate import DEFAULT_DECODE_RATE, DEFAULT_MFU, Plan
from pipelines.plan.layouts import Layout
from pipelines.terminal.text import duration
from pretrain.sharding.memory import size_text
from pretrain.sharding.micro_batch import RESERVED_BYTES

MAX_COLUMNS = 6
EXA = 1e18


def as_json(plan: Plan, device: str, assumed: list[str]) -> dict[str, Any]:
    """The plan as ``--json`` prints it; sizes in bytes, rates per second."""
    return {
        "name": plan.experiment.name,
        "device": device,
        "num_devices": plan.machine.num_devices,
        "num_nodes": plan.num_nodes,
        "mfu": plan.assumptions.mfu,
        "parameters": plan.work.parameters,
        "parameters_without_head": plan.work.parameters_without_head,
        "train_exaflops": plan.work.train_flops_without_head / EXA,
        "train_exaflops_with_head": plan.work.train_flops / EXA,
        "steps": plan.experiment.num_steps,
        "gpu_hours": plan.work.gpu_hours,
        "days": plan.work.days,
        "images_per_s": plan.work.images_per_s,
        "fits": plan.configured is not None,
        "recommended": None if plan.recommended is None else _layout(plan.recommended),
        "reasons": plan.reasons,
        "layouts": [_layout(layout) for layout in plan.layouts],
        "data": {
            "images_per_s_per_node": plan.data.images_per_s,
            "bytes_per_s_per_node": plan.data.bytes_per_s,
            "cores_per_node": plan.data.cores,
            "num_shards": plan.data.num_shards,
            "shards_per_node": plan.data.shards_per_node,
            "epoch_bytes": plan.data.epoch_bytes,
            "measured": plan.data.is_measured,
        },
        "checkpoint_bytes": plan.disk.checkpoint_bytes,
        "disk_held_bytes": plan.disk.held_bytes,
        "disk_written_bytes": plan.disk.written_bytes,
        "worlds": plan.worlds,
        "cost": plan.work.cost,
        "assumed": assumed,
    }


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "zero_stage": layout.sharding.stage,
        "activation_checkpointing": layout.policy,
        "micro_batch_size": layout.micro_batch_size,
        "accumulation_steps": layout.step.accumulation_steps,
        "peak_bytes": layout.memory.peak,
        "memory_bytes": layout.memory.parts(),
        "fits": layout.fits,
        "sent_bytes_per_step": layout.sent_bytes,
        "estimated_step_s": layout.step_s,
    }


def as_text(plan: Plan, title: str, assumed: list[str]) -> str:
    """The plan as text for the terminal."""
    lines = [title, "", *_facts(plan), "", *_memory_table(plan), "", *_recommendation(plan), "", "assumed"]
    return "\n".join([*lines, *(f"  - {line}" for line in assumed)])


def _amount(value: float) -> str:
    """A number with enough digits for small values."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _length(days: float) -> str:
    return f"{days:,.2f} days" if days >= 2 else duration(86400 * days)


def _facts(plan: Plan) -> Iterator[str]:
    experiment, machine, data, disk = plan.experiment, plan.machine, plan.data, plan.disk
    yield (
        f"model       {plan.work.parameters_without_head / 1e6:,.2f} M parameters without head, "
        f"{plan.work.parameters / 1e6:,.2f} M with its {experiment.num_outputs:,} outputs"
    )
    epochs = experiment.epochs(experiment.num_steps * experiment.global_batch_size)
    yield f"steps       {experiment.num_steps:,} of {experiment.global_batch_size:,} images ({epochs:,.4g} epochs)"
    yield (
        f"compute     {plan.work.train_flops_without_head / EXA:,.4g} exaFLOPs without head, "
        f"{plan.work.train_flops / EXA:,.4g} with it (3 × forward, 2 per multiply-add; recomputation not counted)"
    )
    yield (
        f"time        {_amount(plan.work.gpu_hours)} device-hours ({_amount(plan.work.gpu_hours / 24)} device-days) at "
        f"{plan.assumptions.mfu:.0%} MFU: {_length(plan.work.days)} on {machine.num_devices} devices, "
        f"{plan.work.images_per_s:,.0f} images/s"
    )
    if plan.work.cost is not None:
        yield f"cost        {_amount(plan.work.cost)} at {plan.assumptions.price:g} per device-hour"
    yield (
        f"loader      {data.images_per_s:,.0f} images/s and {data.bytes_per_s / 1e6:,.0f} MB/s per node; "
        f"about {data.cores:,.1f} CPU cores per node for decoding ({data.processes} data processes are configured)"
    )
    known = "" if data.is_measured else " (assumed: the set is not here)"
    yield (
        f"data        {data.num_shards:,} shards, {data.epoch_bytes / 1e9:,.1f} GB an epoch{known}; "
        f"{data.shards_per_node:,} shards, {data.epoch_bytes / 1e9 / plan.num_nodes:,.1f} GB per node and epoch"
    )
    yield (
        f"disk        {disk.checkpoint_bytes / 1e9:,.2f} GB a checkpoint; {disk.held_bytes / 1e9:,.1f} GB held at most "
        f"({experiment.checkpoint.keep_last} kept, one being written), {_amount(disk.written_bytes / 1e9)} GB written "
        f"in {disk.num_saves:,} saves"
    )
    yield f"ranks       that draw the same batches: {_some(plan.worlds)}"


def _memory_table(plan: Plan) -> Iterator[str]:
    sizes = _columns(sorted({layout.micro_batch_size for layout in plan.layouts}))
    limit = plan.machine.limit_bytes
    yield (
        f"memory per device in GiB by micro-batch, of {size_text(limit)} ({size_text(RESERVED_BYTES)} are left for the "
        "driver, the communication library and fragmentation); ( ) does not fit"
    )
    yield (
        f"  {'ZeRO':<5}{'checkpointing':<15}" + "".join(f"{size:>9}" for size in sizes) + "   largest  s/step  GB sent"
    )
    by_key = {(layout.row, layout.micro_batch_size): layout for layout in plan.layouts}
    chosen = plan.recommended
    for row in dict.fromkeys(layout.row for layout in plan.layouts):
        first = by_key[row, min(size for other, size in by_key if other == row)]
        cells = "".join(f"{_cell(by_key[row, size]):>9}" for size in sizes)
        best = layouts.largest_fitting(plan.layouts, *row)
        tail = (
            "      none"
            if best is None
            else f"{best.micro_batch_size:>10}{best.step_s:>8.3g}{best.sent_bytes / 1e9:>9.1f}"
        )
        mark = "  ← recommended" if chosen and row == chosen.row else ""
        yield f"  {first.sharding.stage:<5}{first.policy:<15}{cells}{tail}{mark}"


def _cell(layout: Layout) -> str:
    number = f"{layout.memory.peak / 2**30:,.1f}"
    return number if layout.fits else f"({number})"


def _columns(sizes: list[int]) -> list[int]:
    """At most six micro-batches, spread evenly in their logarithm; the smallest and the largest are among them."""
    if len(sizes) <= MAX_COLUMNS:
        return sizes
    wanted = [sizes[0] * (sizes[-1] / sizes[0]) ** (k / (MAX_COLUMNS - 1)) for k in range(MAX_COLUMNS)]
    return sorted({min(sizes, key=lambda size: abs(size - target)) for target in wanted})


def _recommendation(plan: Plan) -> Iterator[str]:
    chosen = plan.recommended
    if chosen is None:
        yield "nothing fits: use more devices, devices with more memory, or a smaller cluster.micro_batch_size"
        return
    yield (
        f"recommended {chosen.sharding.setting.replace(': ', '=')} cluster.activation_checkpointing={chosen.policy} "
        f"cluster.micro_batch_size={chosen.micro_batch_size} (accumulation {chosen.step.accumulation_steps})"
    )
    yield f"  {size_text(chosen.memory.peak)} at the peak: {chosen.memory.in_words()}"
    yield from (f"  - {reason}" for reason in plan.reasons)
    row = layouts.configured_row(plan.experiment)
    configured = f"as configured ({row[0]}, checkpointing {row[1]})"
    if plan.configured is None:
        yield f"{configured} no micro-batch fits"
    elif row != chosen.row:
        yield f"{configured} micro-batch {plan.configured.micro_batch_size} fits"


def assumptions(plan: Plan, given: set[str]) -> list[str]:
    """The assumptions, and what has not been measured.

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
    lines.append(
        "memory is computed; it agrees with the tensors that live in real steps on CPU ranks, and was never measured "
        "on a GPU"
    )
    return lines


def _some(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 16 else [*shown[:12], "…", *shown[-3:]])
