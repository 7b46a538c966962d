"""A small real training, on real backends, for laws that compare one way of running it with another.

Every function here runs inside a rank of a pool (or alone) and returns plain numbers.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor

from pretrain import seeds
from pretrain.assembly.trainer import weights_writer
from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import detect
from pretrain.engine.backend import Backend, Update
from pretrain.engine.backends import build_backend
from pretrain.engine.checkpoint import Checkpointer
from pretrain.engine.checkpoint_folder import newest_valid
from pretrain.engine.loading import Reading
from pretrain.engine.retention import Retention
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.saving import Origin, SavePolicy
from pretrain.engine.session import Session
from pretrain.engine.state import TrainState
from pretrain.models.families.registry import (
    accept_sizes,
    adapt_state_dict,
    build_model,
    init_weights,
    uses_generator,
)
from pretrain.models.interop import load_weights
from pretrain.models.layers.drop_path import drop_path_scales
from pretrain.models.layers.lora import add_adapters
from pretrain.models.layers.patch_drop import kept_patches
from pretrain.models.metadata import TargetScale, WeightsMetadata
from pretrain.models.variants import resolve
from pretrain.objectives.protocol import MicroBatch, Objective
from pretrain.optim.schedules import build_schedule

BATCH, CLASSES, SIZE = 8, 5, 8


def experiment(**changes: object) -> Experiment:
    """A ViT of two blocks on 8×8 images; ``changes`` are dotted keys."""
    settings: dict = {
        "name": "law",
        "seed": 3,
        "duration": "40 steps",
        "global_batch_size": BATCH,
        "precision": "fp32",
        "model": {
            "variant": "mu/2", "img_size": SIZE, "depth": 2, "head_init": "normal", "drop_path": 0.1,
            "representation_size": "width",
        },
        "data": {"shards": "none", "num_samples": 1000, "num_classes": CLASSES},
        "optim": {
            "name": "adamw", "lr": 3e-3, "weight_decay": 0.1, "clip_grad": 1.0,
            "schedule": {"name": "linear", "warmup": "4 steps"},
        },
        "cluster": {"zero_stage": 0, "micro_batch_size": 4},
    }  # fmt: skip
    for key, value in changes.items():
        section, parts = settings, key.split("__")
        for part in parts[:-1]:
            section = section.setdefault(part, {})
        section[parts[-1]] = value
    return Experiment.model_validate(settings)


def global_batch(step: int, config: Experiment) -> MicroBatch:
    """The global batch of a step, the same whoever asks; few different ones, so that the loss falls."""
    generator = torch.Generator().manual_seed(1000 + step % 4)
    tiling, count, first = config.image_sizes.at(step), config.batches.size(step), config.batches.before(step)
    size = tiling.size[0]
    images, grids = torch.randn(count, 3, size, size, generator=generator), None
    if config.data.train_transform.sequence_lengths:  # strips of images of several sizes
        images = torch.randn(count, 3, *tiling.size, generator=generator)
        grids = torch.tensor([[1 + row % 4, 4 - row % 3] for row in range(count)])
    labels = torch.randint(CLASSES, (count, 1), generator=generator)
    slots = torch.arange(first, first + count)
    depth, rate = config.model.depth or 1, config.model.drop_path if config.model.family.takes_drop_path else 0.0
    scales = drop_path_scales(slots.numpy(), rate, depth, seed=config.seed, shape=config.model.drop_path_shape)
    targets = None
    if config.objective.needs.target == "vector":
        targets = 3 + 2 * torch.randn(count, CLASSES, generator=generator)
    if config.objective.needs.target == "mask":
        targets = torch.randint(CLASSES, (count, size, size), generator=generator, dtype=torch.uint8)
        targets[::3, : size // 2] = 255  # on one rank more of the pixels have no class than on the other
    shape = resolve(config.model.at_tiling(tiling)) if config.model.patch_drop else None
    kept = None if shape is None else kept_patches(slots.numpy(), shape, seed=config.seed)
    second = torch.randn(count, 3, size, size, generator=generator) if config.objective.num_views == 2 else None
    more = {"kept": kept, "grids": grids, "second": second, "patch": tiling.patch}
    return MicroBatch(images, labels, scales, targets, slots, **more)  # type: ignore[arg-type]


def make(config: Experiment, kind: str = "deepspeed", weights: str | None = None) -> tuple[Backend, int]:
    """The backend of this rank and its accumulation steps; ``weights`` is a file to start from, with a new head."""
    rank = detect() if dist.is_initialized() else None
    assert rank is not None, "runs inside a process group"
    model = build_model(config.model, config.num_outputs)
    init_weights(model, config.seed)
    if weights is not None:
        state, about = load_weights(weights)
        adapted, _ = adapt_state_dict(state, about, model, head="replace", filter="bicubic", seed=config.seed)
        model.load_state_dict(adapted)
    if config.changes_size and not config.data.train_transform.sequence_lengths:
        accept_sizes(model, config.image_sizes.all, config.init.pos_embed_filter)
    if config.optim.lora is not None:
        add_adapters(model, config.optim.lora, config.seed)
    micro = config.cluster.micro_batch_size
    assert isinstance(micro, int)
    accumulation = BATCH // rank.world // micro
    if kind == "accelerate":  # a process has one precision for good; a pool of ranks runs many cases
        AcceleratorState._reset_state(reset_partial_state=True)
    backend = build_backend(config, model, rank, torch.device("cpu"), kind, (micro, accumulation))
    if config.cluster.compile:  # pools switch Dynamo off; the eager backend keeps a C++ compiler out of the law
        torch._dynamo.config.disable = False
        backend.model.compile_blocks(backend="aot_eager")  # type: ignore[operator]
    return backend, accumulation


def objective_for(config: Experiment, backend: Backend) -> Objective:
    """The objective with its teacher, as a run builds it."""
    from pretrain.assembly.objective import objective_of

    scale = TargetScale((3.0,) * CLASSES, (2.0,) * CLASSES)
    return objective_of(config, backend.model, torch.device("cpu"), lambda line: None, scale=scale)


def one_step(
    backend: Backend,
    config: Experiment,
    accumulation: int,
    step: int,
    poison: Tensor | None = None,
    objective: Objective | None = None,
) -> tuple[float, Update]:
    """One optimiser step on this rank's part of the global batch; returns the global mean loss and what was done."""
    rank, world = detect().rank, detect().world
    objective = objective or objective_for(config, backend)
    batch, losses = global_batch(step, config), []
    size = config.batches.size(step)
    micro = size // world // accumulation
    for index in range(accumulation):
        start = rank * size // world + index * micro
        part = slice(start, start + micro)
        images = batch.images[part] if poison is None else batch.images[part] * poison
        scales = None if batch.drop_path is None else batch.drop_path[part]
        assert batch.slots is not None
        if uses_generator(backend.model):
            torch.manual_seed(seeds.integer_seed(config.seed, "dropout", step, index, rank))
        with backend.micro_step(boundary=index == accumulation - 1):
            targets = None if batch.targets is None else batch.targets[part]
            kept = None if batch.kept is None else batch.kept[part]
            grids = None if batch.grids is None else batch.grids[part]
            second = None if batch.second is None else batch.second[part]
            more = {"kept": kept, "grids": grids, "second": second, "patch": batch.patch}
            inputs = MicroBatch(images, batch.labels[part], scales, targets, batch.slots[part], **more)  # type: ignore[arg-type]
            loss = objective(backend.forward, inputs)
            backend.backward(loss)
        losses.append(loss.detach())
    mean = torch.stack(losses).mean()
    update = backend.step(build_schedule(config)(step))
    dist.all_reduce(mean)
    return float(mean) / world, update


def checkpointer(
    backend: Backend, config: Experiment, folder: Path, objective: Objective | None = None
) -> Checkpointer:
    """A checkpointer whose probe is the loss of a fixed batch."""
    objective = objective or objective_for(config, backend)

    @torch.no_grad()
    def probe() -> Reading:
        backend.train(False)
        batch = global_batch(99, config)
        inputs = replace(batch, drop_path=None, kept=None)
        loss = float(objective(backend.forward, inputs))
        backend.train(True)
        return Reading(loss, tuple(range(len(batch.images))), "law")

    half = (0.5, 0.5, 0.5)
    write_weights = weights_writer(config, WeightsMetadata.of(config.model, config.num_outputs, half, half))
    session = Session.of(detect(), torch.device("cpu"), RunFolder(folder))
    return Checkpointer(
        session=session, backend=backend, write_weights=write_weights, probe=probe,
        schedule=lambda state: build_schedule(config)(state.step), origin=Origin("", "", "", config.precision),
        policy=SavePolicy(Retention(keep_last=2), asynchronous=False), own_average=config.optim.own_average,
    )  # fmt: skip


def train(
    config: Experiment,
    kind: str = "deepspeed",
    *,
    steps: int = 10,
    save_at: int | None = None,
    folder: str | None = None,
    resume: bool = False,
    poison_at: int | None = None,
    weights: str | None = None,
) -> dict:
    """Trains up to ``steps`` and returns losses, norms and updates per step, and a digest of the weights."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    backend, accumulation = make(config, kind, weights)
    objective = objective_for(config, backend)
    backend.train(True)
    state = TrainState()
    if resume:
        assert folder is not None
        found = newest_valid(Path(folder), print)
        assert found is not None
        state = checkpointer(backend, config, Path(folder), objective).load(*found)
    losses, norms, applied = {}, {}, {}
    for step in range(state.step, steps):
        poison = torch.tensor(float("nan")) if step == poison_at and detect().rank == 0 else None
        losses[step], update = one_step(backend, config, accumulation, step, poison, objective)
        norms[step], applied[step] = update.grad_norm, update.applied
        state = state.advance(batch_size=config.batches.size(step), applied=update.applied)
        if save_at == state.step:
            assert folder is not None
            checkpointer(backend, config, Path(folder), objective).save(state)
            backend.train(True)
    masters = {piece.name: piece.states["master"] for piece in backend.slices() if "master" in piece.states}
    sums = {name: weights.double().sum().item() for name, weights in masters.items()}
    return {"losses": losses, "norms": norms, "applied": applied, "num_updates": state.num_updates, "weights": sums}


def train_with(config: Experiment, kind: str, options: dict) -> dict:
    """``train`` with its options as one argument, as pools send them."""
    return train(config, kind, **options)
