"""The record that a run writes about itself, and the sinks of its figures."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from typing import Any

import torch

from pretrain.config.devices import device_reported_as, load_devices
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.collectives import raise_together
from pretrain.distributed.launchers import installed, invocation
from pretrain.distributed.rank import environment
from pretrain.engine import history
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.errors import SetupError
from pretrain.files import write_atomic
from pretrain.models import budget
from pretrain.redaction import redacted_in
from pretrain.telemetry.sinks import JsonlSink, Sink, TensorBoardSink, WandbSink
from pretrain.telemetry.telemetry import Telemetry, Work

RECORDED_PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "safetensors", "numpy", "timm")


def record_start(resolved: Resolved, session: Session, step: int) -> None:
    """Rank 0 writes config.resolved.yaml, environment.json and a line of the history. Collective: yes.

    Args:
        resolved: the settings.
        session: this process.
        step: that the run continues from.

    Raises:
        SetupError: the run folder cannot be written.
    """
    error: SetupError | None = None
    try:
        if session.rank.is_main:
            _write_record(resolved, session, step)
    except OSError as failure:
        error = SetupError(f"run folder {session.folder.path} cannot be written: {failure}")
    raise_together(error, doing="recording the start")


def _write_record(resolved: Resolved, session: Session, step: int) -> None:
    rank, device, folder = session.rank, session.device, session.folder
    write_atomic(folder.config, resolved.to_yaml())
    found: dict[str, Any] = {
        "command": invocation(),
        "python": sys.version,
        "platform": platform.platform(),
        "host": rank.host,
        "packages": installed(RECORDED_PACKAGES),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "world_size": rank.world,
        "launcher": rank.launcher,
        **environment(),
    }
    found = redacted_in(found)
    write_atomic(folder.environment, json.dumps({**found, "provenance": resolved.provenance}, indent=1))
    history.record(folder.history, "launch", step, digest=resolved.digest, **found)


def telemetry_of(resolved: Resolved, session: Session, start_step: int) -> Telemetry:
    """The figures of a run and their sinks, which rank 0 has.

    Raises:
        SetupError: Weights & Biases is configured and cannot start.
    """
    sinks = sinks_of(resolved, session.folder, start_step) if session.rank.is_main else ()
    work = work_of_step(resolved.experiment, session)
    return Telemetry(sinks, session.reporter, log_every=resolved.experiment.telemetry.log_every, work=work)


def sinks_of(resolved: Resolved, folder: RunFolder, purge_step: int) -> list[Sink]:
    """The sinks that the settings ask for; TensorBoard hides what a killed run wrote after ``purge_step``."""
    experiment = resolved.experiment
    sinks: list[Sink] = [JsonlSink(folder.metrics)]
    if experiment.telemetry.tensorboard:
        sinks.append(TensorBoardSink(folder.tensorboard, purge_step))
    if experiment.telemetry.wandb is not None:
        run_id = hashlib.blake2b(str(folder.path.resolve()).encode(), digest_size=8).hexdigest()
        settings = redacted_in(resolved.to_dict())
        name = experiment.name
        sinks.append(WandbSink(folder.path, experiment.telemetry.wandb, name=name, settings=settings, run_id=run_id))
    return sinks


def work_of_step(experiment: Experiment, session: Session) -> Work:
    """The basis of rates and MFU; prints why where MFU cannot be computed."""
    device = session.device
    precision, stated = experiment.precision, experiment.telemetry.peak_tflops
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    known = device_reported_as(name, load_devices())
    peak = None if stated is None else stated * 1e12
    if peak is None and known is not None:
        peak = known.peak_flops(precision, tf32=torch.get_float32_matmul_precision() != "highest")
    flops = None
    if peak is None:
        session.say(f"MFU is not reported: the peak of {name!r} is not known; telemetry.peak_tflops can state it")
    elif budget.can_tell(experiment.model):
        flops = budget.training_flops(experiment.model, experiment.num_outputs, 1)
    return Work(experiment.global_batch_size, session.rank.world, experiment.data.drawn_samples, flops, peak)
