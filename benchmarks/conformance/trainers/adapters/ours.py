"""Ours, through its command line, on the packed digits of the demo.

Loss and faults hang on the trainer that the command builds; nothing of it is replaced.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pretrain.assembly.trainer as build
from benchmarks.conformance.trainers.job import Job, Probe
from benchmarks.loaders.setup import ROOT
from pretrain import run

PACKAGE = "vit-pretrain"
DOCUMENTATION = {"use": "train.md", "checkpoints": "checkpoints.md", "faults": "faults.md"}
NOT_OFFERED: dict[str, str] = {}
LAUNCHER = ("deepspeed", "--num_gpus", "2", "--master_port", "{port}", "--module")
NEWEST = ("run/checkpoints/step-00000008/*",)
DATA = ROOT / "data" / "demo" / "upstream"
SETTINGS = (
    "model.variant=mu/2",
    "optim.lr=1e-3",
    "optim.schedule.warmup=3 steps",
    "evaluation.every=null",
    "telemetry.log_every=1",
    "telemetry.tensorboard=false",
    "checkpoint.asynchronous=false",
    f"data.shards={DATA}/train",
    f"evaluation.sets.val.shards={DATA}/val",
)


def train(job: Job, probe: Probe) -> None:
    """As the command ``vit-pretrain pretrain --config recipe:pretrain/demo_digits`` in each rank."""
    build_trainer = build.build_trainer

    def probed(*args: Any, **kwargs: Any) -> Any:
        trainer = build_trainer(*args, **kwargs)
        objective, report = trainer.objective, trainer.report
        step = 0

        def poisoned(forward: Callable[..., Any], inputs: Any) -> Any:
            return probe.poisoned(step + 1, objective(forward, inputs))

        def reported(state: Any, lr: float, update: Any, boundary: Any, *rest: Any) -> None:
            nonlocal step
            report(state, lr, update, boundary, *rest)
            step = state.step
            probe.after(step, boundary.loss)

        trainer.objective, trainer.report = poisoned, reported
        return trainer

    build.build_trainer = probed
    pack()
    every = (f"duration={job.steps} steps", f"checkpoint.every={job.save_every} steps")
    where = (f"output_dir={job.folder}", "name=run")
    code = run.main(["--config", str(ROOT / "configs/pretrain/demo_digits.yaml"), *SETTINGS, *every, *where])
    if code:
        raise SystemError(f"exit code {code}")


def pack() -> None:
    """The digits of the demo; does nothing if they are packed."""
    if int(os.environ["RANK"]) == 0 and not DATA.exists():
        options = ("--classes", "0-4", "--holdout", "0.2", "--out", str(DATA))
        subprocess.run([sys.executable, "-m", "pipelines", "pack", "digits", *options], check=True, cwd=ROOT)
