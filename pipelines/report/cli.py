"""``python -m pipelines report``: a run, or a comparison of several, as one self-contained HTML file.

The page begins with the result; what ``evaluate``, ``dedup``, ``export`` and ``figures`` have written goes into it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.report import first_light, series
from pipelines.report.evaluation import results
from pipelines.report.page import Extras, page
from pipelines.report.submit import submit
from pipelines.runs.run_record import RunRecord, runs_of
from pipelines.terminal.arguments import add_json, stage_parser
from pipelines.terminal.output import counted
from pretrain import records
from pretrain.command_line import Parser, check_output_file
from pretrain.engine.run_folder import ENVIRONMENT_SHAPE
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.names import tell

EXAMPLES = """\
examples:
  python -m pipelines report runs/vit_l16 --out vit_l16.html
  python -m pipelines report runs/vit_l16 --evaluate data/imagenet/val --out vit_l16.html
  python -m pipelines report runs/vit_l16 --results results/vit_l16 --export exports/vit_l16_hf --out vit_l16.html
  python -m pipelines report runs/vit_l16 runs/vit_b16 --out compared.html --price 2.5
  python -m pipelines report runs/vit_l16 --figures figures/vit_l16 --out vit_l16.html
  python -m pipelines report first_light/first_light.json --out first_light.html
  python -m pipelines report runs/s16_77 --submission --out s16_77.json
  python -m pipelines report s16_77.json --submission
"""
OF_RUNS = ("results", "evaluate", "duplicates", "export", "figures", "price")  # options
LARGE_BYTES = 3_000_000


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = parser().parse_args(argv)
    if args.out is not None:
        check_output_file(args.out)
    if args.submission:
        _refuse_options(args, "submissions have no page")
        return submit(args)
    if args.target is not None or args.out is None:
        raise ConfigError("--target is for --submission" if args.out else "--out: name the HTML file to write")
    if args.price is not None and args.price <= 0:
        raise ConfigError(f"--price {args.price:g}: must be more than 0")
    if args.figures is not None and not any(args.figures.glob("*.png")):
        raise ConfigError(f"--figures {args.figures}: no pictures there; make them with python -m pipelines figures")
    if len(args.runs) == 1 and args.runs[0].is_file():
        return _first_light(args)
    paths = runs_of(args.runs)
    names = series.short_names(paths)
    views = [
        series.view(RunRecord.read(path), name, _environment(path)) for path, name in zip(paths, names, strict=True)
    ]
    _refuse_empty(views)
    content = _content(args, views, argv)
    _write(args.out, content)
    if args.json:
        tell(json.dumps({"out": str(args.out), "runs": [str(path) for path in paths], "bytes": len(content.encode())}))
    else:
        tell(f"{args.out}: {counted(len(views), 'run')}, {len(content.encode()) / 1e3:,.0f} kB")
        if len(content.encode()) > LARGE_BYTES:
            tell("note: the page is large; fewer runs, or no --figures, make it smaller", file=sys.stderr)
        for view in views:
            if not view.curves:
                tell(f"note: {view.record.path} has no line of training yet ({view.record.state})", file=sys.stderr)
    return 0


def _content(args: argparse.Namespace, views: Sequence[series.RunView], argv: Sequence[str]) -> str:
    extras = Extras(
        results=results(views, args.results, args.evaluate, args.out),
        figures=args.figures,
        duplicates=args.duplicates,
        export=args.export,
        price=args.price,
    )
    command = ["python", "-m", "pipelines", "report", *(shlex.quote(word) for word in argv)]
    return page(views, extras, command=command)


def _first_light(args: argparse.Namespace) -> int:
    """The page of a first light; raises ConfigError for options that it does not use."""
    _refuse_options(args, f"{args.runs[0]} is a first light")
    content = first_light.page(first_light.read(args.runs[0]), args.runs[0])
    _write(args.out, content)
    if args.json:
        tell(json.dumps({"out": str(args.out), "bytes": len(content.encode())}))
    else:
        tell(f"{args.out}: first light, {len(content.encode()) / 1e3:,.0f} kB")
    return 0


def _refuse_options(args: argparse.Namespace, reason: str) -> None:
    for name in OF_RUNS:
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"--{name} is for pages of run folders; {reason}: leave it out")


def _write(out: Path, content: str) -> None:
    """Writes the page, with the folders on the way to it.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, content)
    except OSError as error:
        raise SetupError(f"--out {out} cannot be written: {error}; free space or choose another") from error


def _refuse_empty(views: Sequence[series.RunView]) -> None:
    """Raises ConfigError if no run has anything to show."""
    if not any(view.settings or view.curves or view.incidents for view in views):
        raise ConfigError(
            f"{', '.join(str(view.record.path) for view in views)}: nothing to report: neither a config nor a line of "
            "metrics can be read there"
        )


def _environment(path: Path) -> dict[str, Any]:
    return records.read(path / "environment.json", ENVIRONMENT_SHAPE).value or {}


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "report",
        "The result of runs, their curves, settings, incidents, data, cost and commands in one HTML file.",
        EXAMPLES,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, or folders of them; or one first_light.json, or submissions",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the HTML (or with --submission JSON) file to write")
    parser.add_argument(
        "--submission",
        action="store_true",
        help="write the run's entry to the race of docs/race.md to --out; or check submissions",
    )
    parser.add_argument(
        "--target", metavar="METRIC=VALUE", help="a target of your own for --submission, such as val/top1=0.9"
    )
    parser.add_argument(
        "--evaluate", metavar="SPLIT", help="packed split on which to evaluate every run first, as evaluate does"
    )
    folders = (
        ("results", "evaluate", "predictions, classes and mistakes"),
        ("duplicates", "dedup", "duplicates of test images"),
        ("export", "export", "code that loads it"),
        ("figures", "figures", "pictures"),
    )
    for name, stage, what in folders:
        several: dict[str, Any] = {"nargs": "+", "default": []} if name == "results" else {}
        parser.add_argument(
            f"--{name}", type=Path, metavar="DIR", help=f"{what}: the --out of python -m pipelines {stage}", **several
        )
    parser.add_argument("--price", type=float, help="money per device and hour")
    add_json(parser)
    return parser
