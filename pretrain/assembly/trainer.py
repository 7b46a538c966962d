"""Config → a trainer with everything that a run consists of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pretrain import seeds
from pretrain.assembly.evaluator import Evaluator
from pretrain.assembly.feeder import Feeder
from pretrain.assembly.objective import objective_of
from pretrain.assembly.probe import Probe
from pretrain.assembly.record import sinks_of, work_of_step
from pretrain.assembly.weights import build_initialised_model, record_initial_weights
from pretrain.check.memory import resolve_micro_batch
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import resolve_lanes
from pretrain.data.storage.card import Card
from pretrain.data.stream import TrainStream
from pretrain.distributed.rank import Rank
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.backends import build_backend
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.loop import Trainer
from pretrain.engine.resume import Start
from pretrain.engine.retention import Retention
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.state import TrainState
from pretrain.engine.stop import StopRequest
from pretrain.models.families.registry import uses_generator
from pretrain.models.interop import save_weights
from pretrain.models.metadata import TargetScale, WeightsMetadata
from pretrain.optim.schedules import build_schedule
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.telemetry import Telemetry


def build_trainer(
    resolved: Resolved,
    rank: Rank,
    device: torch.device,
    folder: RunFolder,
    reporter: Reporter,
    stop_request: StopRequest,
    watchdog: Watchdog,
    *,
    kind: Literal["deepspeed", "accelerate"],
    head: Literal["keep", "replace"],
    start: Start | None,
) -> Trainer:
    """Everything that a run consists of. Collective: yes."""
    experiment = resolved.experiment
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    micro_batch = resolve_micro_batch(experiment, rank.world, memory, backend=kind)
    model = build_initialised_model(
        experiment, reporter.say, local_world=rank.local_world, head=head, with_init=start is None
    )
    if rank.is_main and start is None:
        record_initial_weights(model, folder, reporter.say)
    draws = uses_generator(model)
    stream = TrainStream(
        experiment,
        rank.rank,
        rank.world,
        micro_batch[0],
        local_world=rank.local_world,
        quarantine=folder.path / "quarantine",
    )
    scale = scale_of(experiment, stream.card)
    objective = objective_of(experiment, model, device, reporter.say, scale=scale)
    feeder = Feeder(experiment, model, stream, device)
    backend = build_backend(experiment, model, rank, device, kind, micro_batch)
    evaluate = Evaluator(experiment, rank, device, backend, feeder.to_images, stop_request, reporter.say, scale=scale)
    schedule = schedule_of(experiment)
    named_outputs = experiment.objective.needs.has_accuracy
    about = WeightsMetadata.of(
        experiment.model,
        experiment.num_outputs,
        experiment.data.mean,
        experiment.data.std,
        class_names=tuple(stream.class_names) if named_outputs else None,
        class_ids=tuple(identifier for identifier, _ in stream.classes) if named_outputs else None,
        eval_transform=experiment.data.eval_transform,
        scale=scale,
    )
    checkpointer = Checkpointer(
        folder=folder.checkpoints,
        rank=rank,
        backend=backend,
        write_weights=functools.partial(_write_weights, about=about),
        probe=Probe(experiment, stream, rank, device, backend, feeder.to_images, objective, reporter.say),
        config_yaml=resolved.to_yaml(),
        config_digest=resolved.digest,
        data_digest=stream.digest,
        precision=experiment.precision,
        schedule=schedule,
        retention=retention_of(experiment),
        asynchronous=experiment.checkpoint.asynchronous,
        stop_on_error=experiment.checkpoint.on_error == "stop",
        say=reporter.say,
    )
    telemetry = Telemetry(
        sinks_of(resolved, folder, 0 if start is None else start.step) if rank.is_main else (),
        reporter,
        log_every=experiment.telemetry.log_every,
        work=work_of_step(experiment, rank.world, device, reporter.say),
    )
    every = experiment.evaluation.every
    return Trainer(
        rank=rank,
        backend=backend,
        folder=folder,
        objective=objective,
        batches=feeder,
        schedule=schedule,
        evaluate=evaluate,
        seed_step=functools.partial(_seed_dropout, experiment.seed if draws else None, rank.rank),
        tally=stream.tally,
        checkpointer=checkpointer,
        telemetry=telemetry,
        stop_request=stop_request,
        watchdog=watchdog,
        device=device,
        num_steps=experiment.num_steps,
        global_batch_size=experiment.global_batch_size,
        accumulation_steps=micro_batch[1],
        evaluate_every=None if every is None else max(1, experiment.steps(every)),
        save_every=max(1, experiment.steps(experiment.checkpoint.every)),
        max_consecutive_skips=experiment.guard.max_consecutive_skips,
        max_rollbacks=experiment.guard.max_rollbacks,
    )


def scale_of(experiment: Experiment, card: Card) -> TargetScale | None:
    """The units of a regression's targets: those of its (first) training set."""
    return TargetScale.of(card.target_mean, card.target_std) if experiment.objective.needs.target == "vector" else None


def lanes_of(experiment: Experiment) -> int:
    """The lanes that ``data.lanes`` means."""
    return resolve_lanes(experiment.global_batch_size, experiment.data.lanes, experiment.data.smallest_source)


def schedule_of(experiment: Experiment) -> Callable[[TrainState], float]:
    """State → the learning rate of its next update."""
    at = build_schedule(experiment)
    return lambda state: at(state.progress(experiment.global_batch_size))


def retention_of(experiment: Experiment) -> Retention:
    """Which checkpoints stay."""
    config = experiment.checkpoint
    every = None if config.keep_every is None else experiment.steps(config.keep_every)
    return Retention(config.keep_last, every, config.keep_best)


def _write_weights(path: Path, tensors: dict[str, Tensor], *, about: WeightsMetadata) -> None:
    save_weights(path, tensors, about)


def _seed_dropout(seed: int | None, rank: int, step: int, micro_step: int) -> None:
    """What torch's generator draws is a function of (seed, step, micro-step, rank): a resume draws the same masks.

    None: the model draws nothing.
    """
    if seed is not None:
        torch.manual_seed(seeds.integer_seed(seed, "dropout", step, micro_step, rank))
