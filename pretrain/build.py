"""Config → live objects. The only file that imports every room, so that no other has to."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain import seeds
from pretrain.check import check_statistics, resolve_micro_batch
from pretrain.config.devices import device_reported_as, load_devices
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.data.device import to_model_input
from pretrain.data.erasing import RandomErasing
from pretrain.data.lanes import resolve_lanes
from pretrain.data.mixing import Mixing
from pretrain.data.stream import EvalStream, TrainStream
from pretrain.distributed.rank import Rank, environment
from pretrain.distributed.watchdog import Watchdog
from pretrain.engine.backend import Backend
from pretrain.engine.backends import build_backend
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import weights_file
from pretrain.engine.loop import Trainer
from pretrain.engine.resume import Start
from pretrain.engine.retention import Retention
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.state import TrainState
from pretrain.engine.statistics import statistics_names
from pretrain.engine.stop import StopRequest
from pretrain.errors import ConfigError, SetupError
from pretrain.evaluation.context import Context as EvaluationContext
from pretrain.evaluation.interrupt import Interrupted
from pretrain.evaluation.registry import build_evaluators
from pretrain.files import write_atomic
from pretrain.models import budget
from pretrain.models.exchange.formats import is_model_folder, load_any
from pretrain.models.init import digest
from pretrain.models.interop import WeightsMetadata, save_weights
from pretrain.models.layers.drop_path import drop_path_scales
from pretrain.models.surgery import adapt_state_dict
from pretrain.models.variants import resolve
from pretrain.models.zoo import build_frozen, build_model, init_weights, takes_any_size, tensor_shapes, uses_generator
from pretrain.objectives.distillation import Teacher
from pretrain.objectives.protocol import Objective
from pretrain.objectives.registry import Context, build_objective
from pretrain.objectives.targets import dense_targets
from pretrain.optim.schedules import build_schedule
from pretrain.telemetry.console import Reporter
from pretrain.telemetry.sinks import JsonlSink, Sink, TensorBoardSink, WandbSink
from pretrain.telemetry.telemetry import Telemetry, Work

PROBE_SAMPLES = 8
LARGEST_WHOLE_MODEL = 2_000_000_000  # parameters
RECORDED_PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "safetensors", "numpy", "timm")


def check_host_memory(experiment: Experiment, local_world: int) -> None:
    """Whether every rank of this node can build the whole model on the CPU before it is sharded.

    Raises:
        ConfigError: more parameters than that route is meant for. SetupError: too little memory is free.
    """
    shapes = tensor_shapes(experiment.model, experiment.num_outputs)
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    if num_parameters > LARGEST_WHOLE_MODEL:
        raise ConfigError(
            f"model: {num_parameters / 1e9:.2f} billion parameters; models are built whole on every rank's CPU, which "
            f"goes up to {LARGEST_WHOLE_MODEL / 1e9:.0f} billion: choose a smaller one"
        )
    needed, free = num_parameters * 4 * local_world, psutil.virtual_memory().available
    if needed > free:
        raise SetupError(
            f"building the model whole on {local_world} ranks needs {needed / 2**30:.1f} GiB of host memory on this "
            f"node, {free / 2**30:.1f} GiB are free: start fewer ranks per node, or free some"
        )


def build_initialised_model(
    experiment: Experiment,
    say: Callable[[str], None],
    *,
    local_world: int,
    head: Literal["keep", "replace"],
    with_init: bool,
) -> nn.Module:
    """The whole model on the CPU, with weights from the seed or, ``with_init``, from ``init.from``.

    Raises:
        ConfigError: an impossible architecture. CheckpointError: weights that do not fit it. SetupError: no memory.
    """
    check_host_memory(experiment, local_world)
    model = build_model(experiment.model, experiment.num_outputs)
    check_statistics(experiment, statistics_names(model))
    source = experiment.init.from_
    if source is None or not with_init:
        init_weights(model, experiment.seed)
        return model
    path, (tensors, about) = read_weights(source, say, experiment.init.weights)
    adapted, report = adapt_state_dict(
        tensors,
        about,
        model,
        head=head,
        filter=experiment.init.pos_embed_filter,
        seed=experiment.seed,
    )
    model.load_state_dict(adapted)
    say(f"weights from {path}")
    for line in [*report.lines(), *_other_normalisation(about, experiment)]:
        say(f"  {line}")
    return model


def read_weights(
    source: str, say: Callable[[str], None], kind: Literal["raw", "ema"] = "raw"
) -> tuple[Path, tuple[dict[str, Tensor], WeightsMetadata]]:
    """The file that ``init.from`` or ``objective.teacher`` stands for, its tensors and what it says about itself.

    Raises:
        CheckpointError: nothing of that kind, or damaged.
    """
    path = Path(source) if is_model_folder(source) else weights_file(Path(source), kind, say)
    return path, load_any(path)


def build_teacher(experiment: Experiment, device: torch.device, say: Callable[[str], None]) -> Teacher:
    """The teacher of a distillation, whole and frozen on the device.

    Raises:
        CheckpointError: no weights there. ConfigError: they are of other classes or of another resolution.
    """
    data, source = experiment.data, experiment.objective.teacher
    assert source is not None
    path, (tensors, about) = read_weights(source, say)
    if about.num_classes != data.num_classes:
        raise ConfigError(
            f"objective.teacher: {path} knows {about.num_classes} classes, data.num_classes is {data.num_classes}; "
            "name a teacher of the same classes"
        )
    img_size = experiment.model.img_size
    wanted = (img_size, img_size) if isinstance(img_size, int) else img_size
    if about.img_size != wanted and not takes_any_size(about.model):
        raise ConfigError(
            f"objective.teacher: {path} takes images of {about.img_size} pixels only, model.img_size is {wanted}; "
            "fine-tune the teacher at that resolution, or choose a convolutional one"
        )
    net = build_frozen(about.model, about.num_classes)
    net.load_state_dict(tensors, strict=True)
    say(f"teacher: {about.model.name} {about.model.variant} from {path}".replace("  ", " "))
    student, own = (data.mean, data.std), (about.mean, about.std)
    return Teacher(net.float().to(device), student, own, autocast=experiment.precision != "fp32")


def objective_of(
    experiment: Experiment, model: nn.Module, device: torch.device, say: Callable[[str], None]
) -> Objective:
    """The experiment's objective with all that it needs to know of model and data, its teacher included."""
    shape = None if experiment.model.is_timm else resolve(experiment.model)
    context = Context(
        seed=experiment.seed,
        mean=experiment.data.mean,
        std=experiment.data.std,
        patch=None if shape is None else shape.patch,
        grid=None if shape is None else shape.grid,
        teacher=build_teacher(experiment, device, say) if experiment.objective.name == "distillation" else None,
        two_heads=bool(getattr(model, "has_two_heads", False)),
    )
    return build_objective(experiment.objective, experiment.num_outputs, context)


def _other_normalisation(about: WeightsMetadata, experiment: Experiment) -> list[str]:
    """A remark where the weights were trained on pixels normalised otherwise."""
    ours, theirs = (experiment.data.mean, experiment.data.std), (about.mean, about.std)
    if ours == theirs:
        return []
    return [f"note: they were trained with data.mean {theirs[0]} and data.std {theirs[1]}; this run has {ours}"]


@dataclass(frozen=True)
class Inputs:
    """A micro-batch as an objective takes it (``objectives.protocol.Inputs``)."""

    images: Tensor
    labels: Tensor
    drop_path: Tensor | None = None
    targets: Tensor | None = None
    slots: Tensor | None = None


@dataclass(frozen=True)
class PreparedBatch:
    """A micro-batch as the loop takes it; ``digest`` is an order-free checksum of its (sample, slot) pairs."""

    inputs: Inputs
    digest: int
    num_bad: int


class Feeder:
    """Training batches as the model takes them: on the device, normalised, with their drop-path scales."""

    def __init__(self, experiment: Experiment, model: nn.Module, stream: TrainStream, device: torch.device) -> None:
        self._experiment, self._stream, self._device = experiment, stream, device
        shape = getattr(model, "shape", None)  # timm's backbones draw their drop-path masks themselves
        self._depth = 0 if shape is None else shape.depth
        data, seed = experiment.data, experiment.seed
        self.to_images = functools.partial(to_model_input, mean=data.mean, std=data.std)
        erasing, mixing = data.augmentation.random_erasing, data.effective_mixing
        self._erase = None if erasing is None else RandomErasing(erasing, seed)
        self._mix = Mixing(mixing, seed, experiment.global_batch_size) if mixing.active else None

    def __call__(self, state: TrainState) -> Generator[PreparedBatch, None, None]:
        """This rank's micro-batches from ``state`` to the end of the run."""
        steps_left = self._experiment.num_steps - state.progress(self._experiment.global_batch_size)
        with closing(self._stream.iterate(state.position, steps_left)) as batches:
            for batch in batches:
                yield self.prepare(batch)

    def prepare(self, batch: Batch) -> PreparedBatch:
        """One micro-batch on the device."""
        slots = batch.slots.numpy()
        digest = int((seeds.hash64(batch.sample_ids.numpy(), slots) >> 32).sum())
        rate = self._experiment.model.drop_path if self._depth else 0.0
        scales = drop_path_scales(slots, rate, self._depth, seed=self._experiment.seed)
        moved = batch.to(self._device)
        images, targets = self.augment(moved, slots)
        inputs = Inputs(
            images=images,
            labels=moved.labels,
            drop_path=None if scales is None else scales.to(self._device, non_blocking=True),
            targets=targets,
            slots=batch.slots,
        )
        return PreparedBatch(inputs, digest, len(batch.faults))

    def augment(self, moved: Batch, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Normalised images, erased and mixed, and the mixed targets (None where nothing is mixed).

        Args:
            moved: the micro-batch on the device.
            slots: its slots, on the host.
        """
        images = self.to_images(moved.images)
        if self._erase is not None:
            images = self._erase(images, slots)
        if self._mix is None:
            return images, None
        return self._mix(images, dense_targets(moved.labels, self._experiment.data.num_classes), slots)


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
    objective = objective_of(experiment, model, device, reporter.say)
    draws = uses_generator(model)
    stream = TrainStream(
        experiment,
        rank.rank,
        rank.world,
        micro_batch[0],
        local_world=rank.local_world,
        quarantine=folder.path / "quarantine",
    )
    feeder = Feeder(experiment, model, stream, device)
    backend = build_backend(experiment, model, rank, device, kind, micro_batch)
    evaluate = Evaluator(experiment, rank, device, backend, feeder.to_images, stop_request, reporter.say)
    schedule = schedule_of(experiment)
    of_labels = experiment.objective.name != "masked_patches"
    about = WeightsMetadata.of(
        experiment.model,
        experiment.num_outputs,
        experiment.data.mean,
        experiment.data.std,
        tuple(stream.class_names) if of_labels else None,
        class_ids=tuple(identifier for identifier, _ in stream.classes) if of_labels else None,
        eval_transform=experiment.data.eval_transform,
    )
    checkpointer = Checkpointer(
        folder=folder.checkpoints,
        rank=rank,
        backend=backend,
        write_weights=functools.partial(_write_weights, about=about),
        probe=functools.partial(evaluate.probe, objective),
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
        _sinks(resolved, folder, 0 if start is None else start.step) if rank.is_main else (),
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


class Evaluator:
    """Runs the evaluation sets, and the probe batch that a checkpoint is verified with."""

    def __init__(
        self,
        experiment: Experiment,
        rank: Rank,
        device: torch.device,
        backend: Backend,
        to_images: Callable[[Tensor], Tensor],
        stop_request: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self._experiment, self._device = experiment, device
        self._backend, self._to_images = backend, to_images
        context = EvaluationContext(
            experiment,
            rank.rank,
            rank.world,
            device,
            backend.model,
            backend.forward,
            to_images,
            say,
            wants_stop=lambda: stop_request.check() is not None,
        )
        self._evaluators = build_evaluators(context)
        self._probe: Batch | None = None

    def __call__(self) -> dict[str, float] | None:
        """``set/metric`` → value over all sets, and ``set_ema/metric`` of the Polyak average. Collective: yes.

        None where a rank was asked to stop in between; all ranks leave at the same batch. The average of the weights
        uses the running statistics of the weights themselves, as torch's AveragedModel.
        """
        self._backend.statistics.unify()
        try:
            results = self._all_sets("")
            if self._experiment.optim.ema_decay is not None:
                with self._backend.averaged():
                    results |= self._all_sets("_ema")
        except Interrupted:
            return None
        return results

    def _all_sets(self, suffix: str) -> dict[str, float]:
        results = {}
        for name, evaluator in self._evaluators.items():
            results |= {f"{name}{suffix}/{metric}": value for metric, value in evaluator().items()}
        return results

    @torch.no_grad()
    def probe(self, objective: Callable[..., Tensor]) -> float:
        """Loss of the training set's first samples, the same on every rank, with dropout off. Collective: yes."""
        if self._probe is None:
            shards = self._experiment.data.sources[0].shards
            first = np.arange(min(PROBE_SAMPLES, self._experiment.data.sources[0].num_samples))
            self._probe = next(iter(EvalStream(self._experiment, shards, 0, 1, PROBE_SAMPLES, sample_ids=first)))
        batch = self._probe.to(self._device)
        self._backend.train(False)
        slots = torch.arange(len(batch.images))
        inputs = Inputs(images=self._to_images(batch.images), labels=batch.labels, slots=slots)
        loss = float(objective(self._backend.forward, inputs))
        self._backend.train(True)
        return loss


def _write_weights(path: Path, tensors: dict[str, Tensor], *, about: WeightsMetadata) -> None:
    save_weights(path, tensors, about)


def _seed_dropout(seed: int | None, rank: int, step: int, micro_step: int) -> None:
    """What torch's generator draws is a function of (seed, step, micro-step, rank): a resume draws the same masks.

    None: the model draws nothing.
    """
    if seed is not None:
        torch.manual_seed(seeds.integer_seed(seed, "dropout", step, micro_step, rank))


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


def _sinks(resolved: Resolved, folder: RunFolder, purge_step: int) -> list[Sink]:
    """Raises SetupError where Weights & Biases is wanted and cannot start."""
    experiment = resolved.experiment
    sinks: list[Sink] = [JsonlSink(folder.metrics)]
    if experiment.telemetry.tensorboard:
        sinks.append(TensorBoardSink(folder.tensorboard, purge_step))
    if experiment.telemetry.wandb is not None:
        run_id = hashlib.blake2b(str(folder.path.resolve()).encode(), digest_size=8).hexdigest()
        settings = resolved.to_dict()
        name = experiment.name
        sinks.append(WandbSink(folder.path, experiment.telemetry.wandb, name=name, settings=settings, run_id=run_id))
    return sinks


def record_initial_weights(model: nn.Module, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Writes a digest of every initial tensor, so that two runs can be compared before their first step."""
    digests = digest(model)
    write_atomic(folder.path / "initial_weights.json", json.dumps(digests, indent=1))
    whole = hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=8).hexdigest()
    say(f"{len(digests)} initial tensors, digest {whole}; each in {folder.path / 'initial_weights.json'}")


def record_run(resolved: Resolved, folder: RunFolder, rank: Rank, device: torch.device) -> None:
    """Writes config.resolved.yaml, its provenance and environment.json into the run folder. Rank 0 only."""
    write_atomic(folder.config, resolved.to_yaml())
    packages = {}
    for package in RECORDED_PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    record: dict[str, Any] = {
        "command": sys.argv,
        "python": sys.version,
        "platform": platform.platform(),
        "packages": packages,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "world_size": rank.world,
        "launcher": rank.launcher,
        "variables": environment("SLURM_", "NCCL_", "CUDA_", "OMP_", "TORCH_", "DS_"),
        "provenance": resolved.provenance,
    }
    write_atomic(folder.environment, json.dumps(record, indent=1))
