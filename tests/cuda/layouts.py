"""The second training step of rank 0 of 8 in each layout and precision, by the trainer of a real job."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from pretrain.assembly.trainer import build_trainer
from pretrain.config.loader import Resolved
from pretrain.distributed.rank import detect
from pretrain.engine.boundary import StepClock
from pretrain.engine.loop import Trainer
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.engine.state import TrainState
from pretrain.sharding.choice import SHARDINGS, refusals
from pretrain.sharding.protocol import Sharding
from tests.cuda.record import Record, recording
from tests.unit.data.sets import experiment, write_set

WORLD, PER_RANK, NUM_SAMPLES = 8, 4, 64
PRECISIONS = ("fp32", "autocast", "bf16")
SETTINGS = {
    "global_batch_size": WORLD * PER_RANK,
    "duration": "3 steps",
    "model": {"variant": "mu/4", "img_size": 8, "depth": 2, "drop_path": 0.1},
    "optim__clip_grad": 1.0,
    "telemetry": {"tensorboard": False},
}


@dataclass(frozen=True)
class Layout:
    """How a job is divided and computed.

    Attributes:
        sharding: what the ranks hold.
        precision: as in the experiment.
        accumulation: micro-batches of a step.
    """

    sharding: Sharding
    precision: str
    accumulation: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings of ``tests.unit.data.sets.experiment``."""
        key, _, value = self.sharding.setting.partition(": ")
        return {
            **SETTINGS,
            "precision": self.precision,
            key.replace(".", "__"): int(value) if value.isdigit() else value,
            "cluster__micro_batch_size": PER_RANK // self.accumulation,
        }


def _layouts() -> dict[str, Layout]:
    every = [
        Layout(sharding, precision, accumulation)
        for shardings in SHARDINGS.values()
        for sharding in shardings
        for precision in PRECISIONS
        for accumulation in ((1, 2) if precision == "fp32" else (1,))
        if not refusals(experiment("none", NUM_SAMPLES, **Layout(sharding, precision).settings), sharding)
    ]
    return {f"{one.sharding.name} {one.precision} × {one.accumulation}": one for one in every}


CASES = _layouts()


def record_of(layout: Layout, device: torch.device) -> Record:
    """The record of a step after the one that allocates, with nothing due at its end."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision for good
    with tempfile.TemporaryDirectory() as folder:
        shards = write_set(Path(folder) / "train", [NUM_SAMPLES])
        config = experiment(shards, NUM_SAMPLES, **layout.settings)
        session = Session.of(detect(), device, RunFolder(Path(folder) / "run"))
        session.folder.open(session.rank, ("local", 0))
        kind: Any = layout.sharding.backend
        trainer = build_trainer(Resolved(config, {}, ""), session, kind=kind, head="keep", start=None)
        record = _second_step(trainer)
        trainer.telemetry.close()
        session.reporter.close()
    return record


def _second_step(trainer: Trainer) -> Record:
    state, clock = TrainState(), StepClock(trainer.session.device)
    trainer.backend.train(True)
    batches = trainer.batches(state)
    state, *_ = trainer.step(state, batches, clock)
    with recording() as record:
        trainer.step(state, batches, clock)
    batches.close()
    return record
