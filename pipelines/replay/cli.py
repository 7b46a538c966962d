"""``python -m pipelines replay RUN --step N``: reruns one step and finds its first tensor that is not finite."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.runs.run_record import RunRecord
from pipelines.terminal.arguments import add_json, stage_parser
from pretrain.command_line import Parser
from pretrain.errors import DataError
from pretrain.names import printable, tell

if TYPE_CHECKING:
    from pipelines.replay.origin import Origin
    from pipelines.replay.rerun import Replayed

EXAMPLES = """examples:
  python -m pipelines replay runs/my_run --step 1200
  python -m pipelines replay runs/my_run --step 1200 --device cpu --json"""
MOST_SAMPLES = 8


def main(argv: Sequence[str]) -> int:
    """Runs the stage; see ``--help``."""
    arguments = parser().parse_args(argv)
    record = RunRecord.read(arguments.run)
    from pipelines.replay.origin import origin_of  # torch from here on
    from pipelines.replay.rerun import Rerun

    origin = origin_of(record, arguments.step)
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        replayed = Rerun(origin, arguments.device or "auto", Path(scratch))(arguments.step)
    logged = {step: line for step, line in record.lines.get("train", {}).items() if step in replayed.losses}
    _check_batch(record, arguments.step, replayed, logged, origin)
    values = as_values(record, arguments.step, replayed, logged, origin)
    tell(json.dumps(values) if arguments.json else render(values), flush=True)
    return 0


def _check_batch(
    record: RunRecord, step: int, replayed: Replayed, logged: dict[int, dict[str, Any]], origin: Origin
) -> None:
    """Raises DataError if the replay did not draw the samples of the run."""
    wanted = (origin.recorded or logged.get(step, {})).get("batch_digest")
    if wanted is not None and wanted != replayed.batch_digest:
        raise DataError(
            f"{record.path}: step {step} draws other samples now than in the run (checksum {replayed.batch_digest}, "
            f"was {wanted}): data.shards, its drop list or its subset have changed"
        )


def as_values(
    record: RunRecord, step: int, replayed: Replayed, logged: dict[int, dict[str, Any]], origin: Origin
) -> dict[str, Any]:
    """The result as JSON values."""
    before = origin.recorded or logged.get(step, {})
    compared = [
        abs(loss - logged[done]["loss"]) for done, loss in replayed.losses.items() if "loss" in logged.get(done, {})
    ]
    finite = [difference for difference in compared if difference == difference and difference != float("inf")]
    place = None if origin.kind == "seed" else str(origin.weights or (origin.start and origin.start.path))
    found = replayed.finding
    return {
        "run": str(record.path),
        "step": step,
        "from": {"kind": origin.kind, "path": place, "step": replayed.begun_at},
        "ranks": origin.layout.world,
        "micro_batches": origin.layout.accumulation_steps,
        "loss": replayed.losses[step],
        "logged_loss": before.get("loss"),
        "grad_norm": replayed.grad_norm,
        "logged_grad_norm": before.get("grad_norm"),
        "compared_steps": len(finite),
        "largest_difference": max(finite, default=None),
        "first": None
        if found is None
        else {
            "phase": found.phase,
            "tensor": found.tensor,
            "count": found.count,
            "size": found.size,
            "rank": replayed.rank,
            "micro_batch": replayed.micro_step,
            "samples": list(map(printable, replayed.samples)),
        },
    }


def render(values: dict[str, Any]) -> str:
    """The result as lines of text."""
    begun, step, first = values["from"], values["step"], values["first"]
    kinds = {
        "capture": f"the weights of the step itself, kept in {begun['path']}",
        "checkpoint": f"{begun['path']}, and the steps after it",
        "seed": "the seed, and all steps",
    }
    lines = [
        f"step {step} of {values['run']}, from {kinds[begun['kind']]}; {values['ranks']} × {values['micro_batches']} "
        "micro-batches in one process",
        f"  loss       {values['loss']}" + _was(values["logged_loss"]),
        f"  grad norm  {values['grad_norm']}" + _was(values["logged_grad_norm"]),
    ]
    if values["largest_difference"] is not None:
        lines.append(
            f"  losses of {values['compared_steps']} steps differ from the log by at most "
            f"{values['largest_difference']:.3g}"
        )
    if first is None:
        return "\n".join([*lines, "  every weight, output and gradient of this step is finite"])
    where = "" if first["rank"] is None else f", rank {first['rank']}, micro-batch {first['micro_batch']}"
    share = f"{first['count']:,} of {first['size']:,} numbers"
    lines.append(f"  first not finite: {first['tensor']} ({first['phase']}{where}; {share})")
    samples = first["samples"]
    lines += [f"  sample     {name}" for name in samples[:MOST_SAMPLES]]
    if len(samples) > MOST_SAMPLES:
        lines.append(f"  and {len(samples) - MOST_SAMPLES} more samples")
    return "\n".join(lines)


def _was(value: float | None) -> str:
    return "  (not in the log)" if value is None else f"  (the run: {value})"


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "replay",
        "Reruns one step of a run in one process: its loss, and the first tensor that was not finite.",
        EXAMPLES,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="the step, as in the log")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    add_json(parser)
    return parser
