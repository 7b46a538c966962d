"""``python -m pipelines report``: a run, or a comparison of several, as one self-contained HTML file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.report import series
from pipelines.report.page import page
from pipelines.runs.run_record import RunRecord, runs_of
from pipelines.terminal.arguments import add_json, stage_parser
from pipelines.terminal.text import counted
from pretrain import records
from pretrain.command_line import Parser
from pretrain.engine import history
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.names import printable, tell
from pretrain.outputs import check_output_file

EXAMPLES = """\
examples:
  python -m pipelines report runs/vit_l16 --out vit_l16.html
  python -m pipelines report runs/vit_l16 runs/vit_b16 --out compared.html --price 2.5
  python -m pipelines report runs/vit_l16 --figures figures/vit_l16 --out vit_l16.html
"""


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    args = _parser().parse_args(argv)
    check_output_file(args.out)
    if args.price is not None and args.price <= 0:
        raise ConfigError(f"--price {args.price:g}: must be more than 0")
    if args.figures is not None and not any(args.figures.glob("*.png")):
        raise ConfigError(f"--figures {args.figures}: no pictures there; make them with python -m pipelines figures")
    paths = runs_of(args.runs)
    names = series.short_names(paths)
    views = [
        series.view(RunRecord.read(path), name, _environment(path)) for path, name in zip(paths, names, strict=True)
    ]
    _refuse_empty(views)
    command = ["python", "-m", "pipelines", "report", *(shlex.quote(word) for word in argv)]
    content = printable(page(views, pictures=args.figures, price=args.price, command=command))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, content)
    except OSError as error:
        raise SetupError(f"--out {args.out} cannot be written: {error}; free space or choose another") from error
    if args.json:
        tell(json.dumps({"out": str(args.out), "runs": [str(path) for path in paths], "bytes": len(content.encode())}))
    else:
        tell(f"{args.out}: {counted(len(views), 'run')}, {len(content.encode()) / 1e3:,.0f} kB")
        for view in views:
            if not view.curves:
                tell(f"note: {view.record.path} has no line of training yet ({view.record.state})", file=sys.stderr)
    return 0


def _refuse_empty(views: Sequence[series.RunView]) -> None:
    """Raises ConfigError if no run has anything to show."""
    if not any(view.settings or view.curves or view.incidents for view in views):
        raise ConfigError(
            f"{', '.join(str(view.record.path) for view in views)}: nothing to report: neither a config nor a line of "
            "metrics can be read there"
        )


def _environment(path: Path) -> dict[str, Any]:
    return records.read(path / "environment.json", history.ENVIRONMENT).value or {}


def _parser() -> Parser:
    parser = stage_parser(
        "report",
        "Curves, settings, incidents, data, environment, cost and commands of runs in one HTML file.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of run folders")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the HTML file to write")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="pictures made by python -m pipelines figures")
    parser.add_argument("--price", type=float, help="money per device and hour")
    add_json(parser)
    return parser
