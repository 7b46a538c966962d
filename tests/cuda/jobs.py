"""A complete job in each layout: it trains, is stopped, saves, resumes, and evaluates every kind of set.

It is a job of one rank, whose checkpoint is complete without the files of other ranks.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from pretrain.config.loader import Resolved
from pretrain.distributed.rank import detect
from pretrain.engine.run_folder import COMPLETE, REQUEUE, RunFolder, Verdict
from pretrain.engine.session import Session, StopRequest
from pretrain.run import Entry, train
from pretrain.telemetry.metrics import read_metrics
from tests.cuda.record import Record, recording
from tests.unit.data.sets import experiment, write_set

WORLD = 1
TRAIN, TEST = 28, 14
SETS: dict[str, dict[str, Any]] = {
    "val": {},
    "shots": {"kind": "few_shot", "shots": [1, 2], "num_seeds": 1},
    "neighbours": {"kind": "knn", "k": 3},
    "logistic": {"kind": "logistic", "max_iterations": 5},
}
CASES: dict[str, dict[str, Any]] = {
    "DDP": {"cluster__backend": "accelerate", "precision": "autocast"},
    "ZeRO-0": {"cluster__zero_stage": 0, "precision": "autocast"},
    "ZeRO-1": {"cluster__zero_stage": 1, "precision": "bf16"},
    "ZeRO-2": {"cluster__zero_stage": 2, "precision": "fp32"},
    "ZeRO-3": {"cluster__zero_stage": 3, "precision": "bf16"},
    "FSDP2": {"cluster__backend": "fsdp2", "precision": "bf16"},
}


def record_of(settings: dict[str, Any], device: torch.device) -> Record:
    """The record of both starts of a job."""
    with tempfile.TemporaryDirectory() as folder, recording() as record:
        one_job(settings, device, Path(folder))
    return record


def one_job(settings: dict[str, Any], device: torch.device, folder: Path) -> None:
    """Trains until it is stopped after one step, and resumes to the end."""
    resolved = _resolved(folder, settings)
    stopped = _start(resolved, folder, device, stop="a test")
    assert (stopped.outcome, stopped.step) == (REQUEUE, 1), stopped
    finished = _start(resolved, folder, device)
    assert (finished.outcome, finished.step) == (COMPLETE, 2), finished
    _require_all_kinds(folder / "test" / "metrics.jsonl")


def _resolved(folder: Path, settings: dict[str, Any]) -> Resolved:
    train_set, test_set = write_set(folder / "train", [TRAIN]), write_set(folder / "val", [TEST])
    held_out = {"shards": str(test_set), "num_samples": TEST}
    probe = {**held_out, "train_shards": str(train_set), "num_train_samples": TRAIN}
    sets = {name: {**(probe if more else held_out), **more} for name, more in SETS.items()}
    common = {
        "duration": "2 steps",
        "optim__ema_decay": 0.9,
        "optim__clip_grad": 1.0,
        "evaluation": {"every": "1 epoch", "sets": sets},
        "telemetry": {"tensorboard": False},
    }
    return Resolved(experiment(train_set, TRAIN, **{**common, **settings}), {}, "")


def _start(resolved: Resolved, output: Path, device: torch.device, stop: str | None = None) -> Verdict:
    folder, stop_request = RunFolder(output / resolved.experiment.name), StopRequest()
    folder.open(detect(), ("local", 0))
    stop_request.reason = stop
    backend: Any = resolved.experiment.cluster.backend
    entry = Entry("deepspeed", "keep").resolve(resolved) if backend == "auto" else Entry(backend, "keep")
    verdict = train(resolved, Session.of(detect(), device, folder, stop_request), entry)
    folder.close(verdict, ("local", 0), writes=True)
    return verdict


def _require_all_kinds(metrics: Path) -> None:
    """Every set was evaluated, with the weights and with their average."""
    evaluations = read_metrics(metrics, "eval")
    assert evaluations, "no evaluation"
    for values in evaluations.values():
        evaluated = {name.partition("/")[0] for name in values if "/" in name}
        assert evaluated == {f"{name}{suffix}" for name in SETS for suffix in ("", "_ema")}
