"""The record that a run writes about itself, and the sinks of its figures."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import pretrain
from pretrain.config.devices import device_reported_as, load_devices
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.collectives import raise_together
from pretrain.distributed.processes import installed, invocation
from pretrain.distributed.rank import environment
from pretrain.engine.run_folder import RunFolder, record_event
from pretrain.engine.session import Session
from pretrain.errors import SetupError
from pretrain.files import digest_of, write_atomic
from pretrain.models.families.registry import cost_is_known
from pretrain.redaction import redacted_in
from pretrain.sharding.work import flops_by_tiling, image_flops
from pretrain.telemetry.metrics import JsonlSink, Sink, TensorBoardSink, WandbSink
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
        "source": _source_digest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "world_size": rank.world,
        "launcher": rank.launcher,
        **environment(),
    }
    found = redacted_in(found)
    write_atomic(folder.environment, json.dumps({**found, "provenance": resolved.provenance}, indent=1))
    record_event(folder.history, "launch", step, digest=resolved.digest, **found)


def _source_digest() -> str:
    """Hash of the package's source files as they are on disk, so that a run states which code trained it."""
    root = Path(pretrain.__file__).parent
    return digest_of(
        part
        for path in sorted(root.rglob("*.py"))
        for part in (path.relative_to(root).as_posix().encode(), path.read_bytes())
    )


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
        peak = known.peak_flops(precision, tf32=experiment.tf32)
    if peak is None:
        session.say(f"MFU is not reported: the peak of {name!r} is not known; telemetry.peak_tflops can state it")
    return work_of(experiment, session.rank.world, peak)


def work_of(experiment: Experiment, world: int, peak_flops: float | None = None) -> Work:
    """The content of a step on ``world`` devices with this peak; FLOPs are those of ``--check``."""
    flops, by_tiling = None, {}
    if cost_is_known(experiment.model):
        flops = image_flops(experiment)
        by_tiling = {
            frozenset(experiment.metrics_of(tiling).items()): value
            for tiling, value in flops_by_tiling(experiment).items()
        }
    batch_size, num_samples = experiment.global_batch_size, experiment.data.drawn_samples
    return Work(batch_size, world, num_samples, flops, peak_flops, by_tiling)
