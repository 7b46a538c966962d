"""``python -m pipelines plan``: what a run will need and cost, before it starts. Does not import torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from pipelines.plan import text
from pipelines.plan.estimate import DEFAULT_DECODE_RATE, DEFAULT_MFU, Assumptions, make_plan
from pipelines.terminal.arguments import add_json, add_overrides, stage_parser
from pretrain.command_line import Parser
from pretrain.config.devices import DEVICES_FILE, find_device, load_devices
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.names import tell

DEFAULT_DEVICE = "a100_80"
EXAMPLES = """\
examples:
  python -m pipelines plan --config configs/pretrain/vit_h14_jft300m.yaml
  python -m pipelines plan --config configs/pretrain/vit_l16_i21k_90ep.yaml --device h100 cluster.num_devices=64
  python -m pipelines plan --config configs/pretrain/vit_b16_jft300m.yaml --price 2.5 --mfu 0.35 cluster.num_devices=32
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_intermixed_args(argv)
    _check(args)
    experiment = load_experiment(args.config, cluster=args.cluster, overrides=args.overrides).experiment
    device = find_device(args.device or DEFAULT_DEVICE, load_devices(args.devices), args.devices)
    stated = experiment.cluster.num_devices
    num_devices = device.per_node if stated == "auto" else stated
    limit = experiment.cluster.device_memory_gib
    plan = make_plan(
        experiment,
        device,
        num_devices,
        Assumptions(args.mfu or DEFAULT_MFU, args.decode_rate or DEFAULT_DECODE_RATE, args.price),
        limit_gib=None if limit == "auto" or args.device else limit,
    )
    given = {name for name in ("cluster", "device", "mfu", "decode_rate") if getattr(args, name) is not None}
    given |= {"cluster"} if stated != "auto" else set()
    assumed = text.assumptions(plan, given)
    if args.json:
        tell(json.dumps(text.as_json(plan, args.device or DEFAULT_DEVICE, assumed)))
    else:
        nodes = f"{plan.num_nodes} node{'s' if plan.num_nodes > 1 else ''}"
        title = f"{experiment.name} on {num_devices} × {device.title} ({nodes}), {experiment.precision}"
        tell(text.as_text(plan, title, assumed))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: a share of the peak is more than 0 and at most 1, such as 0.4")
    for name in ("price", "decode_rate"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be more than 0")


def _parser() -> Parser:
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
    parser.add_argument("--price", type=float, help="money per device and hour, in any currency")
    add_json(parser, "the plan as one line of JSON")
    add_overrides(parser)
    return parser
