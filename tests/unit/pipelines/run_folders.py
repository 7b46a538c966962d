"""Run folders as training writes them, by the same writers, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.config.loader import load_experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.run_folder import RunFolder, Verdict, record_event
from pretrain.engine.timesheet import STEP, Timesheet
from pretrain.files import write_atomic
from pretrain.telemetry.metrics import JsonlSink

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ("duration=100 steps", "model.variant=nano/2", "global_batch_size=64")


def write_run(
    path: Path,
    *overrides: str,
    steps: Iterable[int] = range(1, 101),
    resumed_at: int | None = None,
    verdict: Verdict | None = None,
    happened: Iterable[tuple[str, int, dict[str, Any]]] = (),
) -> Path:
    """A run of the demo's config; the curve falls smoothly and an update is skipped at step 60.

    A resume is on 4 ranks in place of 2. ``happened``: (kind, step, details) of more lines of the history.
    """
    folder = RunFolder(path)
    path.mkdir(parents=True)
    settings = [*SETTINGS, f"name={path.name}", f"output_dir={path.parent}", *overrides]
    resolved = load_experiment(ROOT / "configs/pretrain/demo_digits.yaml", overrides=settings)
    write_atomic(folder.config, resolved.to_yaml())
    environment = {
        "command": ["pretrain/run.py", "--config", "configs/pretrain/demo_digits.yaml", *settings],
        "world_size": 2,
        "device": "<cpu & co>",
        "packages": {"torch": "2"},
        "provenance": resolved.provenance,
    }
    write_atomic(folder.environment, json.dumps(environment))
    sheet = Timesheet(folder.timesheet, print)
    sheet.begin(1, Rank(0, 0, 2, 2, "here", "deepspeed"), ("local", 0), None)
    sheet.write(0, from_step=0)
    launch = {key: value for key, value in environment.items() if key != "provenance"} | {"launcher": "deepspeed"}
    launch |= {"digest": resolved.digest, "source": "5" * 32}
    record_event(folder.history, "launch", 0, **launch)
    record_event(folder.history, "start", 0, world_size=2)
    sink = JsonlSink(folder.metrics)
    for step in steps:
        if step == resumed_at:
            sink.write("resume", step, {"samples": step * 64})
            record_event(folder.history, "launch", step, **launch | {"world_size": 4})
            record_event(
                folder.history, "resume", step, world_size=4, checkpoint=f"checkpoints/step-{step:08d}", written_by=2
            )
        values = {"loss": 2 * math.exp(-step / 40), "lr": 1e-3, "grad_norm": 1.5, "step_s": 0.5, "data_wait": 0.1}
        values |= {"images_per_s": 128.0, "memory_gib": 0.8, "skipped_updates": int(step >= 60), "bad_samples": 0}
        values["batch_digest"] = 7.0 * step
        sink.write("train", step, values)
        if step % 50 == 0:
            sink.write("eval", step, {"val/top1": step / 200, "val/5_shot": step / 300, "val/num_samples": 187})
    for kind, step, details in happened:
        record_event(folder.history, kind, step, **details)
    sink.close()
    sheet.charge(STEP)
    sheet.write(max(steps, default=0))
    if verdict is not None:
        sheet.end(verdict.outcome, verdict.reason)
        found = {**asdict(verdict), "exit_code": verdict.exit_code, "job_id": "local", "restart_count": 0, "time": 0.0}
        write_atomic(folder.exit, json.dumps(found))
    return path
