"""The plan compared with trainings whose FLOPs, hours or memory are published (benchmarks/published_runs.yaml).

    python -m benchmarks.plan
    python -m benchmarks.plan --page docs/plan.md

Two kinds of error are kept apart: that of our arithmetic, which a run's FLOPs show, and that of the assumed MFU, which
its hours show. FLOPs are counted without the classifier, which differs between the publications.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.transferring.tables import fill
from pipelines.plan.estimate import DEFAULT_MFU
from pipelines.terminal.arguments import program_parser
from pretrain.command_line import Parser
from pretrain.config.devices import find_device, load_devices
from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import UserError
from pretrain.models.families.registry import forward_macs
from pretrain.sharding.choice import RESERVED_BYTES, possible_shardings
from pretrain.sharding.protocol import GIB
from pretrain.sharding.step import step_of

RUNS = Path(__file__).with_name("published_runs.yaml")
Row = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    options = _parser().parse_args(argv)
    published = yaml.safe_load(RUNS.read_text())
    try:
        result = {name: [compare(row) for row in published[name]] for name, compare in COMPARISONS.items()}
        tables = {f"published {name}": table(rows, published["sources"]) for name, rows in result.items()}
        if options.page is not None:
            fill(options.page, tables)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n\n".join(tables.values()))
    print(json.dumps(result))
    return 0


def flops(row: Row) -> dict[str, Any]:
    """The FLOPs of a run beside those that are published."""
    experiment = _experiment(row)
    ours = experiment.num_steps * experiment.global_batch_size * _image_flops(experiment) / 1e18
    return {
        "run": row["run"],
        "published, exaFLOPs": row["exaflops"],
        "plan": round(ours, 1),
        "error": f"{round(100 * (ours / row['exaflops'] - 1), 1) + 0.0:+.1f} %",
        "source": row["source"],
    }


def time(row: Row) -> dict[str, Any]:
    """The speed that `plan` expects beside a published one, and the MFU that the latter implies."""
    experiment, devices = _experiment(row), row.get("devices", 1)
    if "peak_tflops" in row:
        title, peak = row["device_name"], row["peak_tflops"] * 1e12
    else:
        device = find_device(row["device"], load_devices())
        title, peak = device.title, device.peak_flops("bf16")
    images = experiment.num_steps * experiment.global_batch_size
    image_flops = _image_flops(experiment)
    hours = row.get("hours", 24 * row.get("core_days", 0)) * devices
    rate = row["images_per_s"] if "images_per_s" in row else images * devices / (3600 * hours)
    mfu = rate * image_flops / (peak * devices)
    return {
        "run": row["run"],
        "devices": f"{devices} × {title}" if "devices" in row else title,
        "published": next(f"{row[key]:,} {unit}" for key, unit in UNITS.items() if key in row),
        "images/s per device": round(rate / devices, 1),
        f"plan at {100 * DEFAULT_MFU:.0f} % MFU": round(DEFAULT_MFU * peak / image_flops, 1),
        "error": f"{100 * (DEFAULT_MFU / mfu - 1):+.0f} %",
        "implied MFU": f"{100 * mfu:.0f} %",
        "source": row["source"],
    }


def memory(row: Row) -> dict[str, Any]:
    """The smallest peak that `plan` gives for a batch per device that ran, without recomputation."""
    experiment, batch = _experiment(row), row["fits"]
    device = find_device(row["device"], load_devices())
    cluster = experiment.cluster.model_copy(update={"activation_checkpointing": "none"})
    step = step_of(experiment.model_copy(update={"cluster": cluster}), row["devices"], batch)
    chosen = min(possible_shardings(experiment), key=lambda sharding: sharding.memory(step).peak)
    peak = (chosen.memory(step).peak + RESERVED_BYTES) / GIB
    return {
        "run": row["run"],
        "devices": f"{row['devices']} × {device.title}",
        "images per device that ran": batch,
        "plan at its smallest sharding, GiB": f"{peak:.1f} ({chosen.name})",
        "fits": "yes" if peak <= device.memory_gib else "**no**",
        "source": row["source"],
    }


COMPARISONS: dict[str, Callable[[Row], dict[str, Any]]] = {"flops": flops, "time": time, "memory": memory}
UNITS = {"images_per_s": "images/s", "hours": "hours", "core_days": "core-days"}


def table(rows: Sequence[Row], sources: Mapping[str, Mapping[str, str]]) -> str:
    """Rows as a Markdown table, whose last column links to the source."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[*map(str, list(row.values())[:-1]), _link(sources[row["source"]])] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _link(source: Mapping[str, str]) -> str:
    return f"[{source['title']}]({source['url']})" if "url" in source else source["title"]


def _experiment(row: Row) -> Experiment:
    return load_experiment(f"configs/{row['config']}.yaml").experiment


def _image_flops(experiment: Experiment) -> float:
    return 6.0 * forward_macs(experiment.model, experiment.num_outputs, with_head=False)


def _parser() -> Parser:
    parser = program_parser("python -m benchmarks.plan", __doc__)
    parser.add_argument("--page", type=Path, help="a page whose tables are written", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
