"""``python -m pipelines watch``: the live state of a run, or of all runs in a folder, in the terminal. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipelines.runs.run_record import RunRecord, describe, runs_of
from pipelines.terminal.arguments import stage_parser
from pipelines.terminal.text import duration
from pretrain.command_line import Parser
from pretrain.errors import ConfigError

WIDE = 160
ENDED = frozenset({"complete", "fatal"})
COLOURS = {"running": "green", "starting": "cyan", "complete": "blue", "fatal": "red", "crashed": "red"}
EXAMPLES = """\
examples:
  python -m pipelines watch runs/vit_l16
  python -m pipelines watch runs --interval 10
  python -m pipelines watch runs --once
"""


def main(argv: Sequence[str]) -> int:
    """Shows the runs until all of them have ended, or Ctrl-C; see ``--help``."""
    args = _parser().parse_args(argv)
    if args.interval <= 0:
        raise ConfigError(f"--interval {args.interval:g}: seconds between two looks, more than 0")
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=WIDE)  # a pipe has no width of its own
    states = look(args.runs)
    if args.once or not console.is_terminal:
        console.print(table(states))
        return 0
    with Live(table(states), console=console, auto_refresh=False) as live:
        while not all(state["state"] in ENDED for state in states):
            time.sleep(args.interval)
            states = look(args.runs)
            live.update(table(states), refresh=True)
    return 0


def look(given: Sequence[Path]) -> list[dict[str, Any]]:
    """The state of each run now; runs that appear later are included in a later call.

    Raises:
        ConfigError: a path is neither a run nor a folder with runs.
    """
    states = []
    for run in runs_of(given):
        record = RunRecord.read(run)
        last = record.train[-1] if record.train else {}
        states.append({**describe(record), "data_wait": last.get("data_wait"), "mfu": last.get("mfu")})
    return states


def table(states: Sequence[dict[str, Any]]) -> Table:
    """One row for each run."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "state", "step", "", "loss", "images/s", "data wait", "time left", "last line", "restarts", ""):
        shown.add_column(name, overflow="fold", no_wrap=name != "", min_width=len(name))
    for state in states:
        colour = COLOURS.get(state["state"], "yellow")
        total = state["num_steps"]
        shown.add_row(
            Path(state["run"]).name,
            f"[{colour}]{state['state']}[/]",
            f"{state['step']:,}" + (f" / {total:,}" if total else ""),
            ProgressBar(total=total, completed=state["step"], width=14) if total else "",
            _figure(state["loss"], ".4f"),
            _figure(state["images_per_s"], ",.0f"),
            _figure(state["data_wait"], ".0%"),
            _length(state["eta_s"]) if state["state"] in ("running", "starting") else "–",
            _length(state["last_line_age_s"]),
            str(state["restarts"]),
            _note(state),
        )
    return shown


def _length(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _note(state: dict[str, Any]) -> str:
    if state["last_error"]:
        return str(state["last_error"])
    if state["config_problem"]:
        return "its config is not valid in this version: see python -m pipelines status"
    if state["evaluation"]:
        return "  ".join(f"{name} {value:.4f}" for name, value in state["evaluation"].items() if name.endswith("top1"))
    return str(state["doing"] or "")


def _parser() -> Parser:
    parser = stage_parser(
        "watch",
        "Live state, speed, time left and last evaluation of runs; ends when all of them have ended.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between updates (2)")
    parser.add_argument("--once", action="store_true", help="print the state once and exit")
    return parser
