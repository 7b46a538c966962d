"""What a run writes about itself, and where its figures go."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch

from pretrain.config.devices import device_reported_as, load_devices
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.invocation import installed, invocation
from pretrain.distributed.rank import Rank, environment
from pretrain.engine import history
from pretrain.engine.run_folder import RunFolder
from pretrain.files import write_atomic
from pretrain.models import budget
from pretrain.redaction import redacted_in
from pretrain.telemetry.sinks import JsonlSink, Sink, TensorBoardSink, WandbSink
from pretrain.telemetry.telemetry import Work

RECORDED_PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "safetensors", "numpy", "timm")


def record_run(resolved: Resolved, folder: RunFolder, rank: Rank, device: torch.device, step: int) -> None:
    """Writes what this start of the run is: config.resolved.yaml, environment.json, a line of the history.

    Rank 0 only.

    Args:
        step: that the start goes on from.
    """
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


def sinks_of(resolved: Resolved, folder: RunFolder, purge_step: int) -> list[Sink]:
    """Raises SetupError where Weights & Biases is wanted and cannot start."""
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


def work_of_step(experiment: Experiment, world: int, device: torch.device, say: Callable[[str], None]) -> Work:
    """What rates and MFU are computed from; says where there can be no MFU."""
    precision, stated = experiment.precision, experiment.telemetry.peak_tflops
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    known = device_reported_as(name, load_devices())
    peak = None if stated is None else stated * 1e12
    if peak is None and known is not None:
        peak = known.peak_flops(precision, tf32=torch.get_float32_matmul_precision() != "highest")
    flops = None
    if peak is None:
        say(f"MFU is not reported: the peak of {name!r} is not known; telemetry.peak_tflops can state it")
    elif budget.can_tell(experiment.model):
        flops = budget.training_flops(experiment.model, experiment.num_outputs, 1)
    return Work(experiment.global_batch_size, world, experiment.data.drawn_samples, flops, peak)
