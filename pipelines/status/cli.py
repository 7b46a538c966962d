"""``python -m pipelines status RUN``: where a run stands, from its folder. No torch, so it answers at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.runs.run_record import RunRecord, find_runs
from pipelines.terminal.arguments import add_json, stage_parser
from pipelines.terminal.text import duration
from pretrain import records
from pretrain.distributed.watchdog import accuse
from pretrain.errors import ConfigError
from pretrain.names import tell

EXAMPLES = """examples:
  python -m pipelines status runs/my_run
  python -m pipelines status runs --json"""
# What a run folder cannot know: the job that goes on with it waits in the queue.
QUEUED = {"PENDING": "queued", "REQUEUED": "queued", "CONFIGURING": "starting", "SUSPENDED": "suspended"}


def main(argv: Sequence[str]) -> int:
    """Prints each run's state; the exit code is 0 whatever it is."""
    parser = stage_parser(
        "status",
        "State, step, time left, restarts and last error of a run, or of all runs in a folder.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, or a folder of run folders")
    add_json(parser, "one line of JSON per run")
    arguments = parser.parse_args(argv)
    for path in [run for given in arguments.runs for run in _runs(given)]:
        status = describe(RunRecord.read(path))
        tell(json.dumps(status) if arguments.json else render(status), flush=True)
    return 0


def describe(record: RunRecord) -> dict[str, Any]:
    """What there is to say of a run, as plain values."""
    state = record.state
    last_start = record.starts[-1] if record.starts else None
    job = str(last_start.job_id) if last_start is not None else None
    if job is not None and state in ("stopped", "waiting", "crashed", "starting"):
        state = QUEUED.get(_job_state(job), state)
    line = record.train[-1] if record.train else {}
    return {
        "run": str(record.path),
        "state": state,
        "step": record.step,
        "num_steps": record.num_steps,
        "eta_s": record.eta_s if state not in ("complete", "fatal") else None,
        "loss": line.get("loss"),
        "images_per_s": line.get("images_per_s"),
        "evaluation": _accuracies(record),
        "restarts": record.num_restarts,
        "job": job,
        "nodes": list(last_start.nodes) if last_start is not None else [],
        "last_error": record.last_error,
        "config_problem": record.config_problem,
        "damaged": record.damaged,
        "doing": accuse(record.beats) if state == "running" and record.beats else None,
        "last_line_age_s": round(record.read_at - float(line["time"]), 1) if "time" in line else None,
    }


def render(status: dict[str, Any]) -> str:
    """The lines for a person."""
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
    job = f", job {status['job']}" if status["job"] else ""
    nodes = f" on {', '.join(status['nodes'])}" if status["nodes"] else ""
    lines.append(f"  restarts    {status['restarts']}{job}{nodes}")
    if status["doing"]:
        lines.append(f"  doing       {status['doing']}")
    if status["last_error"]:
        lines.append(f"  last error  {status['last_error']}")
    if status["config_problem"]:
        lines.append(f"  config      {status['config_problem']}")
    lines += [f"  damaged     {problem}" for problem in status["damaged"]]
    return "\n".join(lines)


def _runs(given: Path) -> list[Path]:
    found = find_runs(given)
    if found:
        return found
    RunRecord.read(given)  # says why it is none
    raise ConfigError(f"{given} holds no run")


def _accuracies(record: RunRecord) -> dict[str, float]:
    line = record.evaluations[-1] if record.evaluations else {}
    return {name: value for name, value in line.items() if name.endswith(("/top1", "/top5")) and records.number(value)}


def _job_state(job: str) -> str:
    """Slurm's word for the job; empty where there is no Slurm, or it does not know the job any more."""
    if shutil.which("squeue") is None:
        return ""
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
