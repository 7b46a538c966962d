"""``python -m pipelines status RUN``: the state of a run, from its folder. No torch, so it answers at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.runs.run_record import RunRecord, describe, runs_of
from pipelines.terminal.arguments import add_json, stage_parser
from pipelines.terminal.output import duration
from pretrain.command_line import Parser
from pretrain.names import tell

EXAMPLES = """examples:
  python -m pipelines status runs/my_run
  python -m pipelines status runs --json"""


def main(argv: Sequence[str]) -> int:
    """Prints each run's state; the exit code is 0 whatever it is."""
    arguments = parser().parse_args(argv)
    for path in runs_of(arguments.runs):
        status = describe(RunRecord.read(path))
        tell(json.dumps(status) if arguments.json else render(status), flush=True)
    return 0


def render(status: dict[str, Any]) -> str:
    """The status as lines of text."""
    total = status["num_steps"]
    done = f"{status['step']:,}" + (f" of {total:,} ({100 * status['step'] / total:.1f} %)" if total else "")
    lines = [f"{status['run']}: {status['state']}", f"  step        {done}"]
    if status["eta_s"] is not None:
        ready = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + status["eta_s"]))
        label = "time left" if status["state"] == "running" else "to train"
        lines.append(
            f"  {label:<11} {duration(status['eta_s'])}" + (f", until {ready}" if label == "time left" else "")
        )
    if status["loss"] is not None:
        age = f", {duration(status['last_line_age_s'])} ago" if status["last_line_age_s"] is not None else ""
        speed = f", {status['images_per_s']:,.0f} images/s" if status["images_per_s"] is not None else ""
        lines.append(f"  last line   loss {status['loss']:.4f}{speed}{age}")
    if status["evaluation"]:
        values = "  ".join(f"{name} {value:.4f}" for name, value in status["evaluation"].items())
        lines.append(f"  evaluation  {values}")
    if status["mirror"] is not None:
        lines += [f"  mirror      {text}" for text in _mirror(**status["mirror"])]
    job = f", job {status['job']}" if status["job"] else ""
    nodes = f" on {', '.join(status['nodes'])}" if status["nodes"] else ""
    lines.append(f"  restarts    {status['restarts']}{job}{nodes}")
    if status["doing"]:
        lines.append(f"  doing       {status['doing']}")
    if status["state"] == "silent":
        lines.append(f"  silent      no heartbeat for {duration(status['heartbeat_age_s'])}: it was killed, or hangs")
    if status["last_error"]:
        lines.append(f"  last error  {status['last_error']}")
    if status["config_problem"]:
        lines.append(f"  config      {status['config_problem']}")
    lines += [f"  damaged     {problem}" for problem in status["damaged"]]
    return "\n".join(lines)


def _mirror(address: str, step: int | None, age_s: float | None, problem: str | None) -> Iterator[str]:
    """The copies of checkpoints in words."""
    age = "" if age_s is None else f", copied {duration(age_s)} ago"
    yield f"no copy in {address} yet" if step is None else f"step {step:,} in {address}{age}"
    if problem is not None:
        yield problem


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "status",
        "State, step, time left, restarts and last error of a run, or of all runs in a folder.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    add_json(parser, "one line of JSON per run")
    return parser
