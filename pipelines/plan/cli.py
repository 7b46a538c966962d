"""``python -m pipelines plan``: what a run will need and cost, before it starts. Does not import torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.plan import layouts
from pipelines.plan.estimate import DEFAULT_DECODE_RATE, DEFAULT_MFU, Assumptions, Plan, assumed, make_plan
from pipelines.plan.layouts import Layout
from pipelines.plan.mirror import DEFAULT_STORE_GB_S
from pipelines.terminal.arguments import add_json, add_overrides, stage_parser
from pipelines.terminal.output import duration
from pretrain.check.derived import load_complete
from pretrain.command_line import Parser
from pretrain.config.devices import DEVICES_FILE, find_device, load_devices
from pretrain.config.sequences import lengths_in_words
from pretrain.errors import ConfigError
from pretrain.names import tell
from pretrain.sharding.choice import RESERVED_BYTES
from pretrain.sharding.protocol import size_text
from pretrain.sharding.work import in_words

DEFAULT_DEVICE = "a100_80"
EXAMPLES = """\
examples:
  python -m pipelines plan --config configs/pretrain/vit_h14_jft300m.yaml
  python -m pipelines plan --config configs/pretrain/vit_l16_i21k_90ep.yaml --device h100 cluster.num_devices=64
  python -m pipelines plan --config configs/pretrain/vit_b16_jft300m.yaml --price 2.5 --mfu 0.35 cluster.num_devices=32
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_intermixed_args(argv)
    _check(args)
    experiment = load_complete(args.config, cluster=args.cluster, overrides=args.overrides, head="replace").experiment
    if experiment.cluster.wanted_device == "cpu" and args.device is None:
        raise ConfigError(
            f"cluster.device: cpu: plan counts with the GPUs of {args.devices}; name the one to plan for, such as "
            f"--device {DEFAULT_DEVICE}, or leave the cluster out"
        )
    if args.store_gb_s is not None and experiment.checkpoint.mirror is None:
        raise ConfigError("--store-gb-s would be ignored: the config copies no checkpoints; set checkpoint.mirror")
    device = find_device(args.device or DEFAULT_DEVICE, load_devices(args.devices), args.devices)
    stated = experiment.cluster.num_devices
    num_devices = device.per_node if stated == "auto" else stated
    limit = experiment.cluster.device_memory_gib
    plan = make_plan(
        experiment,
        device,
        num_devices,
        Assumptions(args.mfu or DEFAULT_MFU, args.decode_rate or DEFAULT_DECODE_RATE, args.price, args.store_gb_s),
        limit_gib=None if limit == "auto" or args.device else limit,
    )
    given = {
        name for name in ("cluster", "device", "mfu", "decode_rate", "store_gb_s") if getattr(args, name) is not None
    }
    given |= {"cluster"} if stated != "auto" else set()
    notes = assumed(plan, given)
    if args.json:
        tell(json.dumps(as_json(plan, args.device or DEFAULT_DEVICE, notes)))
    else:
        nodes = f"{plan.num_nodes} node{'s' if plan.num_nodes > 1 else ''}"
        title = f"{experiment.name} on {num_devices} × {device.title} ({nodes}), {experiment.precision}"
        tell(as_text(plan, title, notes))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: a share of the peak is more than 0 and at most 1, such as 0.4")
    for name in ("price", "decode_rate", "store_gb_s"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be more than 0")


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "plan",
        "Parameters, FLOPs, hours, memory, communication, data, disk and cost of a run.",
        EXAMPLES,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML of the experiment")
    parser.add_argument("--cluster", metavar="FILE", help="cluster YAML (default: one node of the device)")
    parser.add_argument("--device", metavar="NAME", help=f"an entry of the device table ({DEFAULT_DEVICE})")
    parser.add_argument("--devices", default=DEVICES_FILE, metavar="FILE", help="another table (configs/devices.yaml)")
    parser.add_argument("--mfu", type=float, help=f"share of the device's peak that training reaches ({DEFAULT_MFU:g})")
    parser.add_argument("--decode-rate", type=float, help=f"images per second and core ({DEFAULT_DECODE_RATE:g})")
    parser.add_argument(
        "--store-gb-s", type=float, help=f"GB/s of a node to checkpoint.mirror and back ({DEFAULT_STORE_GB_S:g})"
    )
    parser.add_argument("--price", type=float, help="money per device and hour, in any currency")
    add_json(parser, "the plan as one line of JSON")
    add_overrides(parser)
    return parser


MAX_COLUMNS = 6
EXA = 1e18


# long: one figure after the other
def as_json(plan: Plan, device: str, notes: list[str]) -> dict[str, Any]:
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
        "elsewhere": None if plan.elsewhere is None else _layout(plan.elsewhere),
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
        "lost_steps_at_most": plan.disk.lost_steps,
        "lost_s_at_most": plan.disk.lost_s,
        "fast_checkpoints": None if plan.fast is None else asdict(plan.fast),
        "mirror": None if plan.mirror is None else asdict(plan.mirror),
        "worlds": plan.worlds,
        "cost": plan.work.cost,
        "assumed": notes,
    }


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "sharding": layout.sharding.name,
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


def as_text(plan: Plan, title: str, notes: list[str]) -> str:
    """The plan as text for the terminal."""
    lines = [title, "", *_facts(plan), "", *_memory_table(plan), "", *_recommendation(plan), "", "assumed"]
    return "\n".join([*lines, *(f"  - {line}" for line in notes)])


def _amount(value: float) -> str:
    """A number with enough digits for small values."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _length(days: float) -> str:
    return f"{days:,.2f} days" if days >= 2 else duration(86400 * days)


def _model(plan: Plan) -> Iterator[str]:
    """The model and its images."""
    experiment = plan.experiment
    yield (
        f"model       {plan.work.parameters_without_head / 1e6:,.2f} M parameters without head, "
        f"{plan.work.parameters / 1e6:,.2f} M with its {experiment.head_in_words}"
    )
    lengths = experiment.data.train_transform.sequence_lengths
    yield from (f"sequences   {line}" for line in lengths_in_words(lengths))
    if experiment.changes_size and not lengths:
        yield f"images      {experiment.image_sizes.in_words()}; time is that of all steps, memory that of the largest"


def _facts(plan: Plan) -> Iterator[str]:
    experiment, machine, data, disk = plan.experiment, plan.machine, plan.data, plan.disk
    yield from _model(plan)
    epochs = experiment.epochs(experiment.samples_until(experiment.num_steps))
    yield f"steps       {experiment.num_steps:,} of {experiment.mean_batch_size:,.6g} images ({epochs:,.4g} epochs)"
    yield (
        f"compute     {plan.work.train_flops_without_head / EXA:,.4g} exaFLOPs without head, "
        f"{plan.work.train_flops / EXA:,.4g} with it ({in_words(experiment)}; recomputation not counted)"
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
        f"({disk.num_kept:,} kept, one being written), {_amount(disk.written_bytes / 1e9)} GB written "
        f"in {disk.num_saves:,} saves"
    )
    yield (
        f"checkpoints every {experiment.checkpoint.every}; a kill costs at most {disk.lost_steps:,} steps, "
        f"{duration(disk.lost_s)} ({_amount(disk.lost_s * machine.num_devices / 3600)} device-hours)"
    )
    for needs in filter(None, (plan.fast, plan.mirror)):
        yield from needs.in_words(experiment)
    yield f"ranks       valid world sizes: {_some(plan.worlds)}"


def _memory_table(plan: Plan) -> Iterator[str]:
    sizes = _columns(sorted({layout.micro_batch_size for layout in plan.layouts}))
    limit = plan.machine.limit_bytes
    yield (
        f"memory per device in GiB by micro-batch, of {size_text(limit)} ({size_text(RESERVED_BYTES)} are left for the "
        "driver, the communication library and fragmentation); ( ) does not fit"
    )
    names = {layout.sharding.name: layout.sharding.name.removeprefix("ZeRO-") for layout in plan.layouts}
    width = max(5, *(1 + len(name) for name in names.values()))
    yield (
        f"  {'ZeRO':<{width}}{'checkpointing':<15}"
        + "".join(f"{size:>9}" for size in sizes)
        + "   largest  s/step  GB sent"
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
        yield f"  {names[first.sharding.name]:<{width}}{first.policy:<15}{cells}{tail}{mark}"


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
    chosen, other = plan.recommended, plan.elsewhere
    if chosen is None:
        yield "nothing fits: use more devices, devices with more memory, or a smaller cluster.micro_batch_size"
        if other is not None:
            yield f"  what fits is {_other(other)} {_step(other)}, with {size_text(other.memory.peak)} at the peak"
        return
    yield f"recommended {_setting(chosen)} {_step(chosen)} (accumulation {chosen.step.accumulation_steps})"
    yield f"  {size_text(chosen.memory.peak)} at the peak: {chosen.memory.in_words()}"
    yield from (f"  - {reason}" for reason in plan.reasons)
    if other is not None:
        yield (
            f"  - {_other(other)} ({other.sharding.name}) with the same checkpointing and micro-batch: "
            f"{size_text(other.memory.peak)} at the peak instead of {size_text(chosen.memory.peak)}, "
            f"{other.sent_bytes / 1e9:.1f} GB sent per step instead of {chosen.sent_bytes / 1e9:.1f}, an estimated "
            f"{other.step_s:.3g} s per step instead of {chosen.step_s:.3g}"
        )
    row = layouts.configured_row(plan.experiment)
    configured = f"as configured ({row[0]}, checkpointing {row[1]})"
    if plan.configured is None:
        yield f"{configured} no micro-batch fits"
    elif row != chosen.row:
        yield f"{configured} micro-batch {plan.configured.micro_batch_size} fits"


def _setting(layout: Layout) -> str:
    return layout.sharding.setting.replace(": ", "=")


def _other(layout: Layout) -> str:
    """The settings of a layout of another backend than the configured one."""
    backend = f"cluster.backend={layout.sharding.backend}"
    return backend if backend == _setting(layout) else f"{backend} {_setting(layout)}"


def _step(layout: Layout) -> str:
    return f"cluster.activation_checkpointing={layout.policy} cluster.micro_batch_size={layout.micro_batch_size}"


def _some(numbers: list[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 16 else [*shown[:12], "…", *shown[-3:]])
