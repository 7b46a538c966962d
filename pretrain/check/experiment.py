"""Checks before the first step: files, divisibility, lanes, memory. Does not import torch, so that it is fast.

Legend: B images per global batch · R ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pretrain.check import deepspeed_keys
from pretrain.check.files import report_data, report_mirror, report_place, report_start
from pretrain.check.versions import check_library
from pretrain.config.duration import Interval
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.run import Head
from pretrain.config.sequences import lengths_in_words
from pretrain.data.order.mixture import check_copies, in_quanta
from pretrain.data.order.order import allowed_worlds, check_world
from pretrain.data.sampling import check_sampling
from pretrain.data.sources import lanes_of
from pretrain.errors import ConfigError, DataError
from pretrain.models.families.registry import cost_is_known, family_of, num_parameters, require_changing_size
from pretrain.sharding import choice
from pretrain.sharding.choice import known_memory, resolve_micro_batch, sharding_of
from pretrain.sharding.protocol import Sharding, size_text
from pretrain.sharding.step import step_of
from pretrain.sharding.weights import num_state_values, weights_of
from pretrain.sharding.work import image_flops, in_words

# Backend → checks of the settings that its library receives unchanged.
KEY_CHECKS = {"deepspeed": (deepspeed_keys.problems_in,)}


# long: a line for each argument and each section of the report
def check(
    resolved: Resolved,
    *,
    world: int | None = None,
    require_data: bool = False,
    backend: str = "deepspeed",
    device_memory_bytes: int | None = None,
    head: Head = "replace",
) -> list[str]:
    """Validates an experiment against the disk and the target hardware.

    Args:
        resolved: the loaded config.
        world: R as launched; None: ``cluster.num_devices``, or 1 if that is auto.
        require_data: treat missing shards as an error.
        backend: the backend that the caller uses for ``cluster.backend: auto``.
        device_memory_bytes: as detected; ``cluster.device_memory_gib`` overrides it.
        head: what becomes of the head of given weights; the classes of one that is kept are compared.

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
        lambda: _report_images(experiment),
        lambda: [*_report_steps(experiment), *_report_saving(experiment)],
        lambda: _report_batch(experiment, world, ranks, memory, sharding),
        lambda: _report_sharding(experiment, sharding),
        lambda: _report_optimizer(experiment),
        lambda: report_start(experiment, require_data),
        lambda: report_place(experiment),
        lambda: report_mirror(experiment, require_data),
        lambda: _report_evaluation(experiment),
        lambda: report_data(experiment, require_data, head),
    ]
    check_library(sharding.engine(experiment.precision))
    return [f"config      {resolved.path}, digest {resolved.digest}", *_run(sections, resolved)]


def _run(sections: list[Callable[[], list[str]]], resolved: Resolved) -> list[str]:
    lines, problems, of_data = [], [], []
    for section in sections:
        try:
            lines += section()
        except OSError as error:  # an impossible path: too long, below a file, or not accessible
            problems.append(f"{resolved.path}: {error.filename}: {error.strerror}; correct the path")
        except DataError as error:
            of_data += str(error).split("\n")
        except ConfigError as error:
            problems += [f"{_place(line, resolved)}: {line}" for line in str(error).split("\n")]
    if problems or of_data:
        told = list(dict.fromkeys(problems + of_data))
        many = f"{len(told)} problems:\n  " if len(told) > 1 else ""
        raise (ConfigError if problems else DataError)(many + "\n  ".join(told))
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
    if not cost_is_known(model):
        return [f"model       {model.name}: its size and cost are not known here, for that needs torch and timm"]
    body = num_parameters(model, num_outputs, with_head=False)
    total = num_parameters(model, num_outputs)
    flops = image_flops(experiment) * experiment.samples_until(experiment.num_steps)
    return [
        f"model       {family_of(model).summary(model)}, {body / 1e6:,.2f} M parameters without head, "
        f"{total / 1e6:,.2f} M with its {experiment.head_in_words}",
        *(f"sequences   {line}" for line in lengths_in_words(experiment.data.train_transform.sequence_lengths)),
        f"compute     {flops / 1e18:,.4g} exaFLOPs ({in_words(experiment)})",
    ]


def _report_images(experiment: Experiment) -> list[str]:
    """The sizes of the training images, where they change."""
    if not experiment.changes_size or not cost_is_known(experiment.model):
        return []
    if experiment.data.train_transform.sequence_lengths:
        return []  # they are listed with the model
    key = "data.resolution" if experiment.data.resolution else "model.patch_sizes"
    require_changing_size(experiment.model, key)
    for tiling in experiment.image_sizes.all:
        try:
            family_of(experiment.model).geometry(experiment.model.at_tiling(tiling))
        except ConfigError as error:
            patch = "" if tiling.patch is None else f" with patches of {tiling.patch}"
            raise ConfigError(f"{key}: the side {tiling.size[0]}{patch}: {error}") from error
    return [
        f"images      {experiment.image_sizes.in_words()}; evaluated at {' × '.join(map(str, experiment.model.size))}"
    ]


def too_short(experiment: Experiment, duration: object) -> str:
    """The text of an error about a duration shorter than a step."""
    batch = experiment.global_batch_size
    return f"{duration} is less than one step of {batch} images; make it longer, or global_batch_size smaller"


def _report_steps(experiment: Experiment) -> list[str]:
    steps, schedule, fast = experiment.num_steps, experiment.optim.schedule, experiment.checkpoint.fast
    warmup = experiment.steps(schedule.warmup)
    problems = [] if steps else [f"duration: {too_short(experiment, experiment.duration)}"]
    if steps and warmup >= steps:
        problems.append(f"optim.schedule.warmup: {warmup} steps are not shorter than the run of {steps} steps")
    for key, every in (
        ("checkpoint.every", experiment.checkpoint.every.training),
        ("checkpoint.fast.every", None if fast is None else fast.every.training),
        ("evaluation.every", experiment.evaluation.every),
    ):
        if every is not None and experiment.steps(every) < 1:
            problems.append(f"{key}: {too_short(experiment, every)}")
    _refuse(problems)
    epochs = experiment.epochs(experiment.samples_until(steps))
    return [f"steps       {steps:,} ({epochs:,.4g} epochs), warmup {warmup:,}, then {schedule.name}"]


def _report_saving(experiment: Experiment) -> list[str]:
    """When checkpoints are due, and what a kill before the next one would cost."""
    every, steps, seconds = experiment.save_every, experiment.num_steps, experiment.checkpoint.every.seconds
    costs = [] if every is None or every >= steps else [f"{every:,} steps ({every / steps:.0%} of the run)"]
    costs += [] if seconds is None else [str(Interval(None, seconds))]
    if not costs:
        time = replace(experiment.checkpoint.every, seconds=900)
        cost = f"none before the end, so a kill costs the complete run; write '{time}' to save by time too"
    else:
        cost = f"a kill costs at most {' or '.join(costs)}{' of training, whichever is less' if len(costs) > 1 else ''}"
    lines = [f"checkpoints every {experiment.checkpoint.every}; {cost}"]
    if (fast := experiment.checkpoint.fast) is not None:
        copies = "with a copy on the next node" if fast.peers else "without copies on other nodes"
        lines.append(f"fast        every {fast.every} in {fast.folder} of each node, {copies}")
    return lines


def _report_batch(
    experiment: Experiment, world: int | None, ranks: int, memory: int | None, sharding: Sharding
) -> list[str]:
    expected, total = experiment.cluster.num_devices, experiment.global_batch_size
    if world is not None and expected not in ("auto", world):
        raise ConfigError(f"cluster.num_devices: {expected} expected, but {world} ranks were started; set it to auto")
    num_lanes = lanes_of(experiment)
    batches = experiment.batches
    check_world(batches.unit, num_lanes, ranks)
    check_copies(experiment.data.repeated_augmentation, total, num_lanes)
    in_quanta([source.weight for source in experiment.data.mixture] or [1.0])
    check_sampling(experiment)
    micro, accumulation = resolve_micro_batch(experiment, ranks, memory, backend=sharding.backend)
    worlds = allowed_worlds(batches.unit, num_lanes, total)
    lines = [
        f"batch       {total:,} = {ranks} ranks × micro-batch {micro} × accumulation {accumulation}",
        f"lanes       {num_lanes}; valid world sizes: {', '.join(map(str, worlds))}",
    ]
    if batches.vary:
        lines.append(f"            {batches.in_words()}")
    if not cost_is_known(experiment.model):
        return [*lines, "memory      not known here, for that needs torch and timm: not checked"]
    statistics = family_of(experiment.model).running_statistics(experiment.model, experiment.num_outputs)
    check_statistics(experiment, statistics)
    held = sharding.memory(step_of(experiment, ranks, micro))
    capacity = f"of {size_text(memory)}" if memory is not None else "(capacity not known, not checked)"
    return [
        *lines,
        f"memory      {size_text(held.peak)} per device {capacity}: {held.in_words()}",
    ]


def _report_sharding(experiment: Experiment, sharding: Sharding) -> list[str]:
    for problems_in in KEY_CHECKS.get(sharding.engine(experiment.precision), ()):
        _refuse(problems_in(experiment.cluster.passed_on))
    problems = choice.refusals(experiment, sharding)
    _refuse([f"{key}: {reason}" for key, reason in problems])
    return [f"backend     {sharding.backend}, {sharding.name}, {experiment.precision}"]


def _report_optimizer(experiment: Experiment) -> list[str]:
    optim = experiment.optim
    if not cost_is_known(experiment.model):  # parameter names are unknown here, so the run checks the patterns
        return [f"optimiser   {optim.name}"]
    weights = weights_of(experiment)
    per_weight = 4 * num_state_values(experiment) / weights.num_trained
    frozen = f"; {weights.num_frozen / 1e6:,.2f} M parameters are frozen" if weights.num_frozen else ""
    return [f"optimiser   {optim.name}, {per_weight:.3g} bytes of state per weight{frozen}"]


def _report_evaluation(experiment: Experiment) -> list[str]:
    evaluation = experiment.evaluation
    if evaluation.every is not None and not evaluation.sets:
        raise ConfigError("evaluation.every: would be ignored without evaluation.sets; add a set or remove it")
    for name, chosen in evaluation.sets.items():
        for key, path in chosen.files.items():
            if not Path(path).is_file():
                raise ConfigError(f"evaluation.sets.{name}.{key}: {path} does not exist; correct the path")
    every = f"every {evaluation.every} and at the end" if evaluation.every is not None else "at the end"
    sets = [chosen.labelled(name) for name, chosen in evaluation.sets.items()]
    return [f"evaluation  {', '.join(sets)}, {every}"] if sets else []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _place(message: str, resolved: Resolved) -> str:
    """The file and line of the key that a message starts with; the config file if it starts with none."""
    match = re.match(r"([a-z0-9_]+(?:\.[a-z0-9_]+)*): ", message)
    return resolved.where(match[1]) if match else resolved.path
