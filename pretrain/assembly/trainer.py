"""Config → a trainer with everything that a run consists of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain import seeds
from pretrain.assembly.evaluation import Evaluator, Probe
from pretrain.assembly.feeder import Feeder
from pretrain.assembly.head import Target
from pretrain.assembly.model import build_initialised_model, record_initial_weights
from pretrain.assembly.objective import objective_of
from pretrain.assembly.record import telemetry_of
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.run import Head
from pretrain.data.storage.card import Card
from pretrain.data.stream import TrainStream
from pretrain.engine.backends import build_backend
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.fast_saving import FastPolicy, FastTier
from pretrain.engine.loop import Trainer
from pretrain.engine.mirror import Mirror
from pretrain.engine.mirror_folder import MirrorFolder
from pretrain.engine.own_start import Start
from pretrain.engine.retention import Retention
from pretrain.engine.rollback import Guard
from pretrain.engine.saving import Origin, SavePolicy
from pretrain.engine.session import Session
from pretrain.engine.state import Cadence, TrainState
from pretrain.models.families.registry import uses_generator
from pretrain.models.interop import expected_shapes, save_weights
from pretrain.models.layers.lora import merged
from pretrain.models.metadata import TargetScale, WeightsMetadata
from pretrain.objectives.class_weights import ClassCounts
from pretrain.optim.schedules import build_schedule
from pretrain.sharding.choice import resolve_micro_batch


# long: the list of a trainer's parts, one line each, in the order in which they need each other
def build_trainer(
    resolved: Resolved,
    session: Session,
    *,
    kind: str,
    head: Head,
    start: Start | None,
    fast: FastTier | None = None,
) -> Trainer:
    """Everything that a run consists of; ``start`` is loaded by the caller afterwards. Collective: yes."""
    experiment = resolved.experiment
    micro_batch = resolve_micro_batch(experiment, session.rank.world, device_memory(session.device), backend=kind)
    stream = stream_of(experiment, session, micro_batch[0])
    scale = scale_of(experiment, stream.card)
    target = Target(stream.classes, scale) if experiment.objective.needs.has_accuracy else None
    model = initial_model(experiment, session, head, start, target)
    seed_step = dropout_seeding(experiment, model, session.rank.rank)  # a backend may hide what the model draws
    counts = ClassCounts(tuple(stream.card.class_counts), stream.card.num_samples)
    objective = objective_of(experiment, model, session.device, session.say, scale=scale, class_counts=counts)
    feeder = Feeder(experiment, model, stream, session.device)
    backend = build_backend(experiment, model, session.rank, session.device, kind, micro_batch)
    evaluate = Evaluator(experiment, session, backend, feeder.to_images, scale=scale)
    schedule, policy, copies = schedule_of(experiment), save_policy_of(experiment), MirrorFolder.of(experiment)
    checkpointer = Checkpointer(
        session=session,
        backend=backend,
        write_weights=weights_writer(experiment, metadata_of(experiment, stream, scale)),
        probe=Probe(experiment, session, stream, backend, feeder.to_images, objective),
        schedule=schedule,
        origin=Origin(resolved.to_yaml(), resolved.digest, stream.digest, experiment.precision),
        policy=policy,
        own_average=experiment.optim.own_average,
        mirror=None if copies is None else Mirror(session, copies, policy.retention),
        fast=fast,
    )
    return Trainer(
        session=session,
        backend=backend,
        objective=objective,
        batches=feeder,
        schedule=schedule,
        evaluate=evaluate,
        seed_step=seed_step,
        tally=stream.tally,
        checkpointer=checkpointer,
        telemetry=telemetry_of(resolved, session, 0 if start is None else start.step),
        cadence=cadence_of(experiment, micro_batch[1]),
        guard=Guard(experiment.guard.max_consecutive_skips, experiment.guard.max_rollbacks),
    )


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None on a CPU, whose memory is not divided."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def initial_model(
    experiment: Experiment, session: Session, head: Head, start: Start | None, target: Target | None
) -> nn.Module:
    """The model on the CPU; at step 0 its initial weights are recorded."""
    model = build_initialised_model(
        experiment, session.say, local_world=session.rank.local_world, head=head, with_init=start is None, target=target
    )
    if session.rank.is_main and start is None:
        record_initial_weights(model, session.folder, session.say)
    return model


def stream_of(experiment: Experiment, session: Session, micro_batch_size: int) -> TrainStream:
    """This rank's part of the training stream."""
    rank = session.rank
    return TrainStream(
        experiment,
        rank.rank,
        rank.world,
        micro_batch_size,
        local_world=rank.local_world,
        quarantine=session.folder.path / "quarantine",
    )


def scale_of(experiment: Experiment, card: Card) -> TargetScale | None:
    """The units of a regression's targets: those of its (first) training set."""
    return TargetScale.of(card.target_mean, card.target_std) if experiment.objective.needs.target == "vector" else None


def metadata_of(experiment: Experiment, stream: TrainStream, scale: TargetScale | None) -> WeightsMetadata:
    """The metadata of the run's weights files. Only outputs that are classes have names."""
    has_classes = experiment.objective.needs.has_accuracy
    model, num_outputs = experiment.model, experiment.num_outputs
    if not experiment.objective.needs.keeps_head and model.family.has_plain_head:
        model, num_outputs = model.model_copy(update={"head": "pooled", "representation_size": None}), 0
    return WeightsMetadata.of(
        model,
        num_outputs,
        experiment.data.mean,
        experiment.data.std,
        class_names=tuple(stream.class_names) if has_classes else None,
        class_ids=tuple(identifier for identifier, _ in stream.classes) if has_classes else None,
        eval_transform=experiment.data.eval_transform,
        scale=scale,
        objective=experiment.objective.name,
        activation=experiment.objective.needs.activation if has_classes else None,
        precision=experiment.precision,
        tf32=experiment.tf32,
    )


def schedule_of(experiment: Experiment) -> Callable[[TrainState], float]:
    """State → the learning rate of its next update."""
    at, batches = build_schedule(experiment), experiment.batches
    return lambda state: at(state.progress(batches))


def cadence_of(experiment: Experiment, accumulation_steps: int) -> Cadence:
    """The length of the run, and the steps at which it evaluates and saves."""
    every, sizes = experiment.evaluation.every, experiment.image_sizes
    return Cadence(
        num_steps=experiment.num_steps,
        batches=experiment.batches,
        accumulation_steps=accumulation_steps,
        evaluate_every=None if every is None else max(1, experiment.steps(every)),
        save_every=experiment.save_every,
        save_every_s=experiment.checkpoint.every.seconds,
        tiling_at=lambda step: experiment.metrics_of(sizes.at(step)),
    )


def save_policy_of(experiment: Experiment) -> SavePolicy:
    """How checkpoints are written, and which stay."""
    config = experiment.checkpoint
    every = None if config.keep_every is None else experiment.steps(config.keep_every)
    retention = Retention(config.keep_last, every, config.keep_best)
    return SavePolicy(retention, config.asynchronous, stop_on_error=config.on_error == "stop")


def fast_tier_of(experiment: Experiment, session: Session) -> FastTier | None:
    """The fast checkpoints of the run, or None if there are none. Collective: yes."""
    fast = experiment.checkpoint.fast
    if fast is None:
        return None
    every = experiment.fast_save_every
    return FastTier(FastPolicy(every, fast.every.seconds, Path(fast.folder), copies=fast.peers > 0), session)


def dropout_seeding(experiment: Experiment, model: nn.Module, rank: int) -> Callable[[int, int], None]:
    """(step, micro-step) → reseeds torch's generator, where the model draws from it.

    The draws are then a function of (seed, step, micro-step, rank), so a resume draws the same masks.
    """
    if not uses_generator(model):
        return lambda step, micro_step: None

    return lambda step, micro_step: reseed(experiment, step, micro_step, rank)


def reseed(experiment: Experiment, step: int, micro_step: int, rank: int) -> None:
    """Seeds torch's generator for a micro-step of a rank."""
    torch.manual_seed(seeds.integer_seed(experiment.seed, "dropout", step, micro_step, rank))


def weights_writer(experiment: Experiment, about: WeightsMetadata) -> Callable[[Path, dict[str, Tensor]], None]:
    """(path, every parameter by name) → writes the weights file: adapters merged, a head that is not kept left out."""

    def write(path: Path, tensors: dict[str, Tensor]) -> None:
        lora = experiment.optim.lora
        plain = tensors if lora is None else merged(tensors, lora)
        headless = {} if about.num_classes else {name: plain[name] for name in expected_shapes(about)}
        save_weights(path, headless or plain, about)

    return write
