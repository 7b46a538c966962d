"""Checks before the first step: files, divisibility, lanes, memory. Does not import torch, so that it is fast.

Legend: B images per global batch · R ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.check.data import report_data
from pretrain.check.place import report_place
from pretrain.check.versions import check_library
from pretrain.check.weights import check_weights
from pretrain.config.loader import Resolved
from pretrain.config.schema.evaluation import IMAGENET_REAL, NUMBERS
from pretrain.config.schema.experiment import Experiment
from pretrain.config.typed import known_keys, nearest_key
from pretrain.data.order.mixture import check_copies, in_quanta
from pretrain.data.order.order import allowed_worlds, check_world
from pretrain.data.sources import lanes_of
from pretrain.errors import ConfigError
from pretrain.models import budget
from pretrain.models.families.registry import family_of
from pretrain.sharding import choice
from pretrain.sharding.choice import sharding_of
from pretrain.sharding.memory import size_text
from pretrain.sharding.micro_batch import known_memory, resolve_micro_batch
from pretrain.sharding.protocol import Sharding
from pretrain.sharding.step import step_of, weights_of


def check(
    resolved: Resolved,
    *,
    world: int | None = None,
    require_data: bool = False,
    backend: str = "deepspeed",
    device_memory_bytes: int | None = None,
) -> list[str]:
    """Validates an experiment against the disk and the target hardware.

    Args:
        resolved: the loaded config.
        world: R as launched; None: ``cluster.num_devices``, or 1 if that is auto.
        require_data: treat missing shards as an error.
        backend: the backend that the caller uses for ``cluster.backend: auto``.
        device_memory_bytes: as detected; ``cluster.device_memory_gib`` overrides it.

    Returns:
        The report: one line per subject.

    Raises:
        ConfigError: lists every setting that cannot work, with its place and remedy.
        DataError: a data set is damaged, or does not match the config.
        SetupError: the installed version of DeepSpeed may train wrongly.
    """
    experiment, sharding = resolved.experiment, sharding_of(resolved.experiment, backend)
    ranks, memory = world or _expected_world(experiment), known_memory(experiment, device_memory_bytes)
    sections: list[Callable[[], list[str]]] = [
        lambda: _report_model(experiment),
        lambda: _report_steps(experiment),
        lambda: _report_batch(experiment, world, ranks, memory, sharding),
        lambda: _report_sharding(experiment, sharding, ranks),
        lambda: _report_optimizer(experiment),
        lambda: _report_start(experiment, require_data),
        lambda: report_place(experiment),
        lambda: _report_evaluation(experiment),
    ]
    check_library(sharding.backend)
    lines = _run(sections, resolved) + _run([lambda: report_data(experiment, require_data)], resolved)
    return [f"config      {resolved.path}, digest {resolved.digest}", *lines]


def _run(sections: list[Callable[[], list[str]]], resolved: Resolved) -> list[str]:
    lines, problems = [], []
    for section in sections:
        try:
            lines += section()
        except OSError as error:  # an impossible path: too long, below a file, or not accessible
            problems.append(f"{resolved.path}: {error.filename}: {error.strerror}; correct the path")
        except ConfigError as error:
            problems += [f"{_place(line, resolved)}: {line}" for line in str(error).split("\n")]
    if problems:
        problems = list(dict.fromkeys(problems))
        many = f"{len(problems)} problems:\n  " if len(problems) > 1 else ""
        raise ConfigError(many + "\n  ".join(problems))
    return lines


def _expected_world(experiment: Experiment) -> int:
    return 1 if experiment.cluster.num_devices == "auto" else experiment.cluster.num_devices


def check_statistics(experiment: Experiment, names: Sequence[str]) -> None:
    """Checks that a model with running statistics of these names can be trained with the experiment's settings.

    Raises:
        ConfigError: the statistics would be rounded, or updated twice per step.
    """
    model = experiment.model.name
    if names and experiment.precision == "bf16":
        raise ConfigError(
            f"precision: bf16 rounds the running statistics of {model} (such as {names[0]}) so that they never change: "
            "use precision: autocast or fp32"
        )
    if names and experiment.cluster.activation_checkpointing != "none":
        raise ConfigError(
            f"cluster.activation_checkpointing: {model} keeps running statistics (such as {names[0]}), which a second "
            "forward pass would gather twice: set it to none and lower cluster.micro_batch_size"
        )


def _report_model(experiment: Experiment) -> list[str]:
    model, num_outputs = experiment.model, experiment.num_outputs
    if not budget.can_tell(model):
        return [f"model       {model.name}: its size and cost are not known here, for that needs torch and timm"]
    body = budget.num_parameters(model, num_outputs, with_head=False)
    total = budget.num_parameters(model, num_outputs)
    flops = budget.training_flops(model, num_outputs, experiment.num_steps * experiment.global_batch_size)
    return [
        f"model       {family_of(model).summary(model)}, {body / 1e6:,.2f} M parameters without head, "
        f"{total / 1e6:,.2f} M with its {num_outputs:,} {experiment.objective.needs.outputs}",
        f"compute     {flops / 1e18:,.4g} exaFLOPs (3 × forward, 2 per multiply-add)",
    ]


def _report_steps(experiment: Experiment) -> list[str]:
    steps, schedule = experiment.num_steps, experiment.optim.schedule
    warmup = experiment.steps(schedule.warmup)
    problems = [] if steps else [f"duration: {experiment.duration} is less than one step; make it longer"]
    if steps and warmup >= steps:
        problems.append(f"optim.schedule.warmup: {warmup} steps are not shorter than the run of {steps} steps")
    for key, every in (
        ("checkpoint.every", experiment.checkpoint.every),
        ("evaluation.every", experiment.evaluation.every),
    ):
        if every is not None and experiment.steps(every) < 1:
            problems.append(f"{key}: {every} is less than one step; make it longer")
    _refuse(problems)
    epochs = experiment.epochs(steps * experiment.global_batch_size)
    return [f"steps       {steps:,} ({epochs:,.4g} epochs), warmup {warmup:,}, then {schedule.name}"]


def _report_batch(
    experiment: Experiment, world: int | None, ranks: int, memory: int | None, sharding: Sharding
) -> list[str]:
    expected, total = experiment.cluster.num_devices, experiment.global_batch_size
    if world is not None and expected not in ("auto", world):
        raise ConfigError(f"cluster.num_devices: {expected} expected, but {world} ranks were started; set it to auto")
    num_lanes = lanes_of(experiment)
    check_world(total, num_lanes, ranks)
    check_copies(experiment.data.repeated_augmentation, total, num_lanes)
    in_quanta([source.weight for source in experiment.data.mixture] or [1.0])
    micro, accumulation = resolve_micro_batch(experiment, ranks, memory, backend=sharding.backend)
    worlds = allowed_worlds(total, num_lanes, total)
    lines = [
        f"batch       {total:,} = {ranks} ranks × micro-batch {micro} × accumulation {accumulation}",
        f"lanes       {num_lanes}; numbers of ranks that draw the same batches: {', '.join(map(str, worlds))}",
    ]
    if not budget.can_tell(experiment.model):
        return [*lines, "memory      not known here, for that needs torch and timm: not checked"]
    statistics = family_of(experiment.model).running_statistics(experiment.model, experiment.num_outputs)
    check_statistics(experiment, statistics)
    held = sharding.memory(step_of(experiment, ranks, micro))
    capacity = f"of {size_text(memory)}" if memory is not None else "(capacity not known, not checked)"
    return [
        *lines,
        f"memory      {size_text(held.peak)} per device {capacity}: {held.in_words()}",
    ]


def _report_sharding(experiment: Experiment, sharding: Sharding, ranks: int) -> list[str]:
    problems = choice.refusals(experiment, sharding)
    _refuse([f"{key}: {reason}" + _memory_there(experiment, key, ranks) for key, reason in problems])
    return [f"backend     {sharding.backend}, {sharding.name}, {experiment.precision}"]


def _memory_there(experiment: Experiment, key: str, ranks: int) -> str:
    """The memory per device with the sharding that the optimiser needs; "" for other refusals."""
    precision = "autocast" if experiment.precision == "bf16" else experiment.precision
    changed = experiment.model_copy(update={"precision": precision})
    sharding = choice.least_sharded(changed)
    if key != "optim.name" or sharding is None or not budget.can_tell(experiment.model):
        return ""
    held = sharding.memory(step_of(changed, ranks, 1))
    return f": each device then holds {size_text(held.state + held.gradients)} beside activations"


def _report_optimizer(experiment: Experiment) -> list[str]:
    optim = experiment.optim
    line = f"optimiser   {optim.name}, {4 * optim.num_states:g} bytes of state per weight"
    if not budget.can_tell(experiment.model):  # parameter names are unknown here, so the run checks the patterns
        return [line]
    frozen = weights_of(experiment).num_frozen
    return [line + (f"; {frozen / 1e6:,.2f} M parameters are frozen" if frozen else "")]


def _report_start(experiment: Experiment, require_data: bool) -> list[str]:
    problems, lines = [], []
    known = set(known_keys(Experiment))
    for name in experiment.resume.allow_changes:
        if name not in known:
            near = nearest_key(name, known)
            problems.append(f"resume.allow_changes: {name} is not a key" + (f"; did you mean {near}?" if near else ""))
    sources = {
        "resume.from": experiment.resume.from_,
        "init.from": experiment.init.from_,
        "objective.teacher": experiment.objective.teacher_weights,
    }
    for key, source in sources.items():
        if source is not None and not Path(source).exists():
            if key == "objective.teacher" and not require_data:  # an input like the data: it may be on another machine
                lines.append(f"teacher     {source}: not found, not checked")
                continue
            problems.append(f"{key}: {source} does not exist; name a run folder, a checkpoint or a weights file")
        elif source is not None and key == "resume.from" and not _has_checkpoint(Path(source)):
            problems.append(
                f"{key}: {source} holds no complete checkpoint: give a run folder or one of its checkpoints"
            )
        elif source is not None:
            lines.append(f"{key.removeprefix('objective.'):<11} {source}")
    unused = sorted(experiment.init.model_fields_set - {"from_"})
    if experiment.init.from_ is None and unused:
        problems.append(f"init.{unused[0]}: would be ignored without init.from; set init.from or remove it")
    _refuse(problems)
    if experiment.init.from_ is not None:
        check_weights(Path(experiment.init.from_), experiment.model)
    return lines


def _has_checkpoint(source: Path) -> bool:
    """Whether the folder is a checkpoint or a run folder with one; its files are not checked."""
    places = ("COMPLETE.json", "step-*/COMPLETE.json", "checkpoints/step-*/COMPLETE.json")
    return any(next(source.glob(place), None) is not None for place in places)


def _report_evaluation(experiment: Experiment) -> list[str]:
    evaluation = experiment.evaluation
    if evaluation.every is not None and not evaluation.sets:
        raise ConfigError("evaluation.every: would be ignored without evaluation.sets; add a set or remove it")
    for name, chosen in evaluation.sets.items():
        for key, path in (("targets", chosen.targets), ("class_map", chosen.class_map)):
            if path is not None and path not in (IMAGENET_REAL, NUMBERS) and not Path(path).is_file():
                raise ConfigError(f"evaluation.sets.{name}.{key}: {path} does not exist; correct the path")
    every = f"every {evaluation.every} and at the end" if evaluation.every is not None else "at the end"
    sets = [
        name if chosen.kind == "accuracy" else f"{name} ({chosen.kind})" for name, chosen in evaluation.sets.items()
    ]
    return [f"evaluation  {', '.join(sets)}, {every}"] if sets else []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _place(message: str, resolved: Resolved) -> str:
    """The file and line of the key that a message starts with; the config file if it starts with none."""
    match = re.match(r"([a-z_]+(?:\.[a-z_]+)*): ", message)
    return resolved.where(match[1]) if match else resolved.path
