"""``python -m pipelines doctor``: whether this machine is fit for training, and how to fix what is not."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from pipelines.doctor import software, speed
from pipelines.nodes import checks
from pipelines.nodes.checks import AMBER, GREEN, LEVELS, RED, Finding
from pipelines.terminal.arguments import add_json, stage_parser
from pretrain.command_line import Parser
from pretrain.errors import SetupError
from pretrain.files import make_folders
from pretrain.names import tell

EXIT_CODES = {GREEN: 0, AMBER: 1, RED: 2}
MEMORY_GIB, SPACE_GIB = 4.0, 10.0
TINY_RANKS = 2
EXAMPLES = """\
examples:
  python -m pipelines doctor
  python -m pipelines doctor --gpus 8 --run /shared/runs --shards data/imagenet21k/train
  python -m pipelines doctor --quick --json
  python -m pipelines doctor --first-light --minutes 10 --out first_light

exit code: 0 all green, 1 something amber (it can run, but not as it should), 2 something red (it cannot)
"""


def main(argv: Sequence[str]) -> int:
    """Runs all checks and prints their findings; see ``--help``."""
    args = parser().parse_args(argv)
    console, found = Console(highlight=False, soft_wrap=True), []
    for finding in first_light(args) if args.first_light else examine(args):
        found.append(finding)
        if args.json:
            tell(json.dumps(finding.to_dict()), flush=True)
        else:
            _show(console, finding)
    worst = max((finding.level for finding in found), key=LEVELS.index)
    if not args.json:
        counts = ", ".join(f"{sum(f.level == level for f in found)} {level}" for level in LEVELS)
        console.print(f"{counts}", style="bold")
    return EXIT_CODES[worst]


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    """One finding after the other."""
    yield software.python()
    yield (found := software.torch())
    has_torch = found.level != RED
    yield software.deepspeed()
    yield software.versions()
    simple: list[Callable[[], Finding]] = [
        lambda: checks.gpus(args.gpus if args.gpus is not None else _visible_gpus(has_torch)),
        speed.links,
        lambda: checks.memory(MEMORY_GIB),
        checks.shared_memory,
        checks.locked_memory,
        checks.infiniband,
        lambda: checks.space(args.run, SPACE_GIB),
        lambda: checks.clock(args.run),
        software.decoding,
        software.open_files,
        software.slurm,
        *[lambda folder=folder: checks.shards(folder) for folder in args.shards],
    ]
    for question in simple:
        yield question()
    if args.quick:
        return
    yield speed.disk(args.run)
    if has_torch:
        yield from speed.compute()
        yield speed.all_reduce()


def first_light(args: argparse.Namespace) -> Iterator[Finding]:
    """Trainings and measurements on all GPUs of this node; ``args.out/first_light.json`` has every figure.

    Raises:
        SetupError: there is no GPU, and ``--tiny`` was not given.
    """
    from pipelines.doctor.first_light.bench import Bench
    from pipelines.doctor.first_light.sections import first_light as sections

    gpus = _visible_gpus(has_torch=True)
    if not gpus and not args.tiny:
        raise SetupError("--first-light needs a GPU, and none is visible; --tiny tries the procedure on two CPU ranks")
    ranks = args.gpus or gpus or TINY_RANKS
    make_folders(args.out)
    bench = Bench(args.out.resolve(), ranks, gpus, args.tiny, time.monotonic() + 60 * args.minutes)
    yield from sections(bench)


def _visible_gpus(has_torch: bool) -> int:
    if not has_torch:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _show(console: Console, finding: Finding) -> None:
    colour = {GREEN: "green", AMBER: "yellow", RED: "red"}[finding.level]
    console.print(f"[{colour}]{finding.level:<6}[/] {finding.probe:<17}", end="")
    console.print(finding.text, markup=False)
    if finding.remedy:
        console.print(f"{'':<24}→ {finding.remedy}", markup=False)


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "doctor",
        "Software, GPUs and links, memory, disk, clock, limits and speed of this machine.",
        EXAMPLES,
    )
    parser.add_argument("--gpus", type=int, help="required number of GPUs (default: all that torch sees)")
    parser.add_argument(
        "--run", type=Path, default=Path("runs"), metavar="DIR", help="folder of the run folders (runs)"
    )
    parser.add_argument("--shards", type=Path, nargs="+", default=[], metavar="DIR", help="packed sets to check")
    parser.add_argument("--first-light", action="store_true", help="train and measure on all GPUs, into one JSON file")
    parser.add_argument("--minutes", type=float, default=10, help="of a first light (10); what does not fit is skipped")
    parser.add_argument(
        "--out", type=Path, default=Path("first_light"), metavar="DIR", help="folder of a first light (first_light)"
    )
    parser.add_argument("--tiny", action="store_true", help="try the first light itself with tiny models, on CPU ranks")
    parser.add_argument("--quick", action="store_true", help="skip the speed tests")
    add_json(parser, "one line of JSON per finding")
    return parser
