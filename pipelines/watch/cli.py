"""``python -m pipelines watch``: the live state of a run, or of all runs in a folder, in the terminal. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipelines.runs.run_record import RunRecord, describe, find_runs, runs_of
from pipelines.terminal.arguments import stage_parser
from pipelines.terminal.output import duration
from pretrain.command_line import Parser
from pretrain.errors import ConfigError

WIDE = 160
BAR, NOTE = " ", "  "  # columns without a heading
BAR_WIDTH, NOTE_WIDTH, GAP = 14, 16, 2
COLUMNS = ("run", "state", "step", BAR, "loss", "images/s", "data wait", "time left", "last line", "restarts", NOTE)
LEAST_IMPORTANT = ("data wait", "restarts", BAR, "last line", "images/s", "loss", NOTE, "time left")
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
    args = parser().parse_args(argv)
    if args.interval <= 0:
        raise ConfigError(f"--interval {args.interval:g}: seconds between two looks, more than 0")
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=WIDE)  # a pipe has no width of its own
    if args.once or not console.is_terminal:
        console.print(table(look(args.runs), console.width))
        return 0
    wait_for(args.runs, console, args.interval)
    states = look(args.runs)
    with Live(table(states, console.width), console=console, auto_refresh=False) as live:
        while not all(state["state"] in ENDED for state in states):
            time.sleep(args.interval)
            states = look(args.runs)
            live.update(table(states, console.width), refresh=True)
    return 0


def wait_for(given: Sequence[Path], console: Console, interval_s: float) -> None:
    """Waits until every path is a run or a folder with runs: ``watch`` may be started before the training."""
    with console.status("") as shown:
        while missing := [str(path) for path in given if not find_runs(path)]:
            shown.update(f"waiting for {', '.join(missing)} to begin; Ctrl-C ends")
            time.sleep(interval_s)


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


def table(states: Sequence[dict[str, Any]], width: int = WIDE) -> Table:
    """One row for each run; columns that a narrow terminal has no room for are left out, the least important first."""
    rows = [_cells(state) for state in states]
    wide = {name: max(map(cell_len, [name, *(row[name] for row in rows)])) for name in COLUMNS}
    wide |= {BAR: BAR_WIDTH, NOTE: NOTE_WIDTH if any(row[NOTE] for row in rows) else 0}
    kept = list(COLUMNS)
    for name in LEAST_IMPORTANT:
        if sum(wide[column] + GAP for column in kept) > width:
            kept.remove(name)
    shown = Table(box=None, padding=(0, GAP, 0, 0))
    for name in kept:
        shown.add_column(
            name.strip(), overflow="fold", no_wrap=name != NOTE, min_width=0 if name == NOTE else wide[name]
        )
    for state, row in zip(states, rows, strict=True):
        total, colour = state["num_steps"], COLOURS.get(state["state"], "yellow")
        drawn: dict[str, Any] = {**row, "state": f"[{colour}]{row['state']}[/]"}
        drawn[BAR] = ProgressBar(total=total, completed=state["step"], width=BAR_WIDTH) if total else ""
        shown.add_row(*(drawn[name] for name in kept))
    return shown


def _cells(state: dict[str, Any]) -> dict[str, str]:
    """Column → the text of a run, without colours."""
    total = state["num_steps"]
    return {
        "run": Path(state["run"]).name,
        "state": state["state"],
        "step": f"{state['step']:,}" + (f" / {total:,}" if total else ""),
        BAR: "",
        "loss": _figure(state["loss"], ".4f"),
        "images/s": _figure(state["images_per_s"], ",.0f"),
        "data wait": _figure(state["data_wait"], ".0%"),
        "time left": _length(state["eta_s"]) if state["state"] in ("running", "starting") else "–",
        "last line": _length(state["last_line_age_s"]),
        "restarts": str(state["restarts"]),
        NOTE: _note(state),
    }


def _length(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _note(state: dict[str, Any]) -> str:
    if state["state"] == "silent":
        return f"no heartbeat for {duration(state['heartbeat_age_s'])}: it was killed, or hangs"
    if state["last_error"]:
        return str(state["last_error"])
    if state["config_problem"]:
        return "its config is not valid in this version: see python -m pipelines status"
    if state["evaluation"]:
        return "  ".join(f"{name} {value:.4f}" for name, value in state["evaluation"].items() if name.endswith("top1"))
    return str(state["doing"] or "")


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "watch",
        "Live state, speed, time left and last evaluation of runs; ends when all of them have ended.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between updates (2)")
    parser.add_argument("--once", action="store_true", help="print the state once and exit")
    return parser
