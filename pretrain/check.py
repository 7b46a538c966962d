"""Everything that can be known before the first step: files, divisibility, lanes, memory. No torch: it answers at once.

Legend: B images per global batch · R ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.optim import WHOLE_TENSOR_OPTIMIZERS, OptimConfig
from pretrain.config.typed import known_keys, nearest_key
from pretrain.data import lanes
from pretrain.data.index import TABLE_FILE
from pretrain.data.location import Location
from pretrain.data.sources import Source, needed_bytes, open_packed, open_sources
from pretrain.data.transport import TransportError, open_transport
from pretrain.errors import ConfigError, DataError
from pretrain.models import budget, variants
from pretrain.models.zero_memory import Buckets, MemoryBytes
from pretrain.optim import groups

Backend = Literal["deepspeed", "accelerate"]

GIB = 2**30
RESERVED_BYTES = 2 * GIB  # CUDA context, communication library, fragmentation: what the memory model leaves out
RANKS_PER_NODE = 8  # where --check must guess how many share a cache
LARGEST_BLIND_MICRO_BATCH = 64  # where the device's memory is not known


def check(
    resolved: Resolved,
    *,
    world: int | None = None,
    require_data: bool = False,
    backend: Backend = "deepspeed",
    device_memory_bytes: int | None = None,
) -> list[str]:
    """Validates an experiment against the disk and the hardware that it is meant for.

    Args:
        resolved: the loaded config.
        world: R of the launcher; None: ``cluster.num_devices``, or 1 where that is auto.
        require_data: absent shards are an error.
        backend: what ``cluster.backend: auto`` means to the caller.
        device_memory_bytes: as detected; ``cluster.device_memory_gib`` goes before it.

    Returns:
        The report: one line per subject.

    Raises:
        ConfigError: every setting that cannot work, with its place and remedy.
        DataError: a data set that is there is not the one that the config describes, or is damaged.
    """
    experiment = resolved.experiment
    backend = experiment.cluster.backend if experiment.cluster.backend != "auto" else backend
    ranks = world or _expected_world(experiment)
    memory = _known_memory(experiment, device_memory_bytes)
    sections: list[Callable[[], list[str]]] = [
        lambda: _report_model(experiment),
        lambda: _report_steps(experiment),
        lambda: _report_batch(experiment, world, ranks, memory, backend),
        lambda: _report_precision(experiment, backend),
        lambda: _report_optimizer(experiment, backend, ranks),
        lambda: _report_start(experiment, require_data),
        lambda: _report_evaluation(experiment),
    ]
    head = [f"config      {resolved.path}, digest {resolved.digest}"]
    return head + _run(sections, resolved) + _run([lambda: _report_data(experiment, require_data)], resolved)


def resolve_micro_batch(
    experiment: Experiment,
    world: int,
    device_memory_bytes: int | None = None,
    *,
    backend: Backend = "deepspeed",
) -> tuple[int, int]:
    """Images per device in one pass, and how many passes make a step.

    ``auto`` takes the largest even divisor of B / R that the memory allows; where the memory is not known, at most 64.

    Args:
        experiment: the settings.
        world: R.
        device_memory_bytes: as detected; ``cluster.device_memory_gib`` goes before it.
        backend: what ``cluster.backend: auto`` means to the caller.

    Returns:
        (micro_batch_size, accumulation_steps), whose product is B / R.

    Raises:
        ConfigError: R does not divide B, the micro-batch does not divide B / R, or none fits into the memory.
    """
    total, wanted = experiment.global_batch_size, experiment.cluster.micro_batch_size
    if total % world:
        raise ConfigError(f"global_batch_size: {total} cannot be cut into equal parts for {world} ranks")
    per_rank = total // world
    memory = _known_memory(experiment, device_memory_bytes) if budget.can_tell(experiment.model) else None
    if wanted == "auto":
        chosen = _largest_that_fits(experiment, world, memory, backend)
        return chosen, per_rank // chosen
    if per_rank % wanted:
        allowed = ", ".join(str(size) for size in _divisors(per_rank))
        raise ConfigError(
            f"cluster.micro_batch_size: {wanted} does not divide the {per_rank} images per rank "
            f"({total} over {world} ranks); possible: {allowed}"
        )
    if memory is not None and (needed := _peak_bytes(experiment, world, wanted, backend)) > memory:
        raise ConfigError(
            f"cluster.micro_batch_size: {wanted} needs about {_gib(needed)} of {_gib(memory)} per device; "
            + _memory_remedy(experiment)
        )
    return wanted, per_rank // wanted


def _run(sections: list[Callable[[], list[str]]], resolved: Resolved) -> list[str]:
    lines, problems = [], []
    for section in sections:
        try:
            lines += section()
        except ConfigError as error:
            problems += [f"{_place(line, resolved)}: {line}" for line in str(error).split("\n")]
    if problems:
        problems = list(dict.fromkeys(problems))
        many = f"{len(problems)} problems:\n  " if len(problems) > 1 else ""
        raise ConfigError(many + "\n  ".join(problems))
    return lines


def _expected_world(experiment: Experiment) -> int:
    return 1 if experiment.cluster.num_devices == "auto" else experiment.cluster.num_devices


def _known_memory(experiment: Experiment, detected: int | None) -> int | None:
    stated = experiment.cluster.device_memory_gib
    return detected if stated == "auto" else int(stated * GIB)


def _largest_that_fits(experiment: Experiment, world: int, memory: int | None, backend: Backend) -> int:
    per_rank = experiment.global_batch_size // world
    sizes = [size for size in _divisors(per_rank) if size % 2 == 0] or [per_rank]
    if memory is None:
        return max([size for size in sizes if size <= LARGEST_BLIND_MICRO_BATCH] or sizes[:1])
    limit = memory - RESERVED_BYTES
    fitting = [size for size in sizes if _peak_bytes(experiment, world, size, backend) <= limit]
    if not fitting:
        needed = _peak_bytes(experiment, world, sizes[0], backend)
        raise ConfigError(
            f"cluster.micro_batch_size: even {sizes[0]} images need about {_gib(needed)} and {_gib(RESERVED_BYTES)} "
            f"reserve of {_gib(memory)} per device; {_memory_remedy(experiment)}"
        )
    return fitting[-1]


def num_optimizer_temporaries(optim: OptimConfig) -> int:
    """fp32 tensors per parameter that the optimiser makes while it updates, on a GPU."""
    return {"adamw": 1, "sgd": int(optim.weight_decay > 0)}.get(optim.name, 2)


def _memory(experiment: Experiment, world: int, micro_batch_size: int, backend: Backend) -> MemoryBytes:
    cluster = experiment.cluster
    return budget.memory_bytes(
        experiment.model,
        experiment.num_outputs,
        precision=experiment.precision,
        zero_stage=cluster.zero_stage if backend == "deepspeed" else 0,
        num_devices=world,
        micro_batch_size=micro_batch_size,
        checkpointing=cluster.activation_checkpointing,
        num_optimizer_states=experiment.optim.num_states,
        num_temporaries=num_optimizer_temporaries(experiment.optim),
        accumulates=experiment.global_batch_size // world > micro_batch_size,
        buckets=Buckets.of(cluster.deepspeed),
    )


def _peak_bytes(experiment: Experiment, world: int, micro_batch_size: int, backend: Backend) -> int:
    return _memory(experiment, world, micro_batch_size, backend).peak


def _memory_remedy(experiment: Experiment) -> str:
    cluster = experiment.cluster
    ways = ["a smaller micro-batch"] if cluster.micro_batch_size != "auto" else []
    if cluster.activation_checkpointing == "none":
        ways.append("cluster.activation_checkpointing: full")
    if cluster.zero_stage < 3:
        ways.append(f"cluster.zero_stage: {cluster.zero_stage + 1}")
    return f"try {', '.join([*ways, 'more devices'])}"


def check_statistics(experiment: Experiment, names: Sequence[str]) -> None:
    """Whether a model that keeps running statistics of these names can be trained as the experiment says.

    Raises:
        ConfigError: they would be rounded, or gathered twice.
    """
    model = experiment.model.name
    if names and experiment.precision == "bf16":
        raise ConfigError(
            f"precision: bf16 rounds the running statistics of {model} (such as {names[0]}) so that they stand still: "
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
    outputs = "classes" if num_outputs == experiment.data.num_classes else "colours"
    return [
        f"model       {_shape(model)}, {body / 1e6:,.2f} M parameters without head, {total / 1e6:,.2f} M with its "
        f"{num_outputs:,} {outputs}",
        f"compute     {flops / 1e18:,.4g} exaFLOPs (3 × forward, 2 per multiply-add)",
    ]


def _shape(model: ModelConfig) -> str:
    if model.is_timm:
        pair = (model.img_size, model.img_size) if isinstance(model.img_size, int) else model.img_size
        return f"{model.name} at {pair[0]}×{pair[1]}"
    shape = variants.resolve(model)
    return f"{model.variant} at {shape.img_size[0]}×{shape.img_size[1]}: {shape.num_tokens} tokens"


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
    epochs = steps * experiment.global_batch_size / experiment.data.drawn_samples
    return [f"steps       {steps:,} ({epochs:,.4g} epochs), warmup {warmup:,}, then {schedule.name}"]


def _report_batch(
    experiment: Experiment, world: int | None, ranks: int, memory: int | None, backend: Backend
) -> list[str]:
    expected, total = experiment.cluster.num_devices, experiment.global_batch_size
    if world is not None and expected not in ("auto", world):
        raise ConfigError(f"cluster.num_devices: {expected} expected, but {world} ranks were started; set it to auto")
    num_lanes = lanes.resolve_lanes(total, experiment.data.lanes, experiment.data.smallest_source)
    lanes.check_world(total, num_lanes, ranks)
    micro, accumulation = resolve_micro_batch(experiment, ranks, memory, backend=backend)
    worlds = lanes.allowed_worlds(total, num_lanes, total)
    lines = [
        f"batch       {total:,} = {ranks} ranks × micro-batch {micro} × accumulation {accumulation}",
        f"lanes       {num_lanes}; numbers of ranks that draw the same batches: {', '.join(map(str, worlds))}",
    ]
    if not budget.can_tell(experiment.model):
        return [*lines, "memory      not known here, for that needs torch and timm: not checked"]
    if experiment.model.is_timm:
        from pretrain.engine.statistics import statistics_names
        from pretrain.models.timm_cost import meta_model

        check_statistics(experiment, statistics_names(meta_model(experiment.model, experiment.num_outputs)))
    held = _memory(experiment, ranks, micro, backend)
    capacity = f"of {_gib(memory)}" if memory is not None else "(capacity not known, not checked)"
    return [
        *lines,
        f"memory      {_gib(held.peak)} per device {capacity}: weights {_gib(held.weights)}, gradients "
        f"{_gib(held.gradients)}, optimiser {_gib(held.optimizer)}, buckets {_gib(held.buffers)}, "
        f"activations {_gib(held.activations + held.working)}",
    ]


def _report_precision(experiment: Experiment, backend: Backend) -> list[str]:
    stage, precision = experiment.cluster.zero_stage, experiment.precision
    if precision == "bf16" and backend == "accelerate":
        raise ConfigError("precision: bf16 weights need backend: deepspeed; use precision: autocast")
    if precision == "bf16" and stage == 0:
        raise ConfigError(
            "cluster.zero_stage: 0 with precision: bf16 trains wrongly (DeepSpeed's optimiser takes a dummy step at "
            "its start, so Adam counts one too many); use cluster.zero_stage: 1 or precision: autocast"
        )
    sharding = f"ZeRO-{stage}" if backend == "deepspeed" else "DDP (ZeRO settings do not apply)"
    return [f"backend     {backend}, {sharding}, {precision}"]


def _report_optimizer(experiment: Experiment, backend: Backend, ranks: int) -> list[str]:
    optim, stage = experiment.optim, experiment.cluster.zero_stage
    if optim.name in WHOLE_TENSOR_OPTIMIZERS and backend == "deepspeed" and stage:
        raise ConfigError(f"optim.name: {_whole_tensor_remedy(experiment, ranks)}")
    line = f"optimiser   {optim.name}, {4 * optim.num_states:g} bytes of state per weight"
    if experiment.model.is_timm:  # its names are known only with torch and timm: the run checks the patterns
        return [line]
    shapes = variants.parameter_shapes(experiment.model, experiment.num_outputs)
    rules = groups.assign_rules({name: len(shape) for name, shape in shapes.items()}, optim)
    frozen = sum(math.prod(shapes[name]) for name, rule in rules.items() if rule.frozen)
    return [line + (f"; {frozen / 1e6:,.2f} M parameters are frozen" if frozen else "")]


def _whole_tensor_remedy(experiment: Experiment, ranks: int) -> str:
    name, stage = experiment.optim.name, experiment.cluster.zero_stage
    text = f"{name} needs whole tensors, which ZeRO-{stage} cuts into pieces; use cluster.zero_stage: 0"
    if experiment.precision == "bf16":
        text += " with precision: autocast"
    text += ", or cluster.backend: accelerate"
    if not budget.can_tell(experiment.model):
        return text
    precision = "autocast" if experiment.precision == "bf16" else experiment.precision
    whole = experiment.model_copy(update={"precision": precision})
    held = _memory(whole, ranks, 1, "accelerate")
    return f"{text}: each device then holds {_gib(held.weights + held.gradients + held.optimizer)} beside activations"


def _report_start(experiment: Experiment, require_data: bool) -> list[str]:
    problems, lines = [], []
    known = set(known_keys(Experiment))
    for name in experiment.resume.allow_changes:
        if name not in known:
            near = nearest_key(name, known)
            problems.append(f"resume.allow_changes: {name} is no key" + (f"; did you mean {near}?" if near else ""))
    sources = {
        "resume.from": experiment.resume.from_,
        "init.from": experiment.init.from_,
        "objective.teacher": experiment.objective.teacher,
    }
    for key, source in sources.items():
        if source is not None and not Path(source).exists():
            if key == "objective.teacher" and not require_data:  # an input like the data: it may lie elsewhere
                lines.append(f"teacher     {source}: not found, not checked")
                continue
            problems.append(f"{key}: {source} does not exist; name a run folder, a checkpoint or a weights file")
        elif source is not None:
            lines.append(f"{key.removeprefix('objective.'):<11} {source}")
    unused = sorted(experiment.init.model_fields_set - {"from_"})
    if experiment.init.from_ is None and unused:
        problems.append(f"init.{unused[0]}: would be ignored without init.from; set init.from or remove it")
    _refuse(problems)
    return lines


def _report_evaluation(experiment: Experiment) -> list[str]:
    evaluation = experiment.evaluation
    if evaluation.every is not None and not evaluation.sets:
        raise ConfigError("evaluation.every: would be ignored without evaluation.sets; add a set or remove it")
    for name, chosen in evaluation.sets.items():
        for key, path in (("targets", chosen.targets), ("class_map", chosen.class_map)):
            if path is not None and not Path(path).is_file():
                raise ConfigError(f"evaluation.sets.{name}.{key}: {path} does not exist; correct the path")
    every = f"every {evaluation.every} and at the end" if evaluation.every is not None else "at the end"
    sets = [
        name if chosen.kind == "accuracy" else f"{name} ({chosen.kind})" for name, chosen in evaluation.sets.items()
    ]
    return [f"evaluation  {', '.join(sets)}, {every}"] if sets else []


def _report_data(experiment: Experiment, require_data: bool) -> list[str]:
    data = experiment.data
    keys = [f"data.mixture.{place}.shards" for place in range(len(data.mixture))] or ["data.shards"]
    places = {key: (source.shards, source.num_samples, True) for key, source in zip(keys, data.sources, strict=True)}
    for name, split in experiment.evaluation.sets.items():
        own = not split.has_own_classes
        places[f"evaluation.sets.{name}.shards"] = (split.shards, split.num_samples, own)
        if split.train_shards is not None and split.num_train_samples is not None:
            places[f"evaluation.sets.{name}.train_shards"] = (split.train_shards, split.num_train_samples, own)
    lines: list[str] = []
    absent: set[str] = set()
    for key, (shards, num_samples, same_classes) in places.items():
        location = Location.parse(shards)
        if location.is_remote or _has_shards(Path(location.base)):
            try:
                lines.append(_check_split(experiment, key, shards, num_samples, same_classes))
                continue
            except DataError:
                if require_data or not location.is_remote or _answers(location, experiment):
                    raise
        if require_data:
            raise DataError(
                f"{key}: no shards in {shards}; make them with python -m pipelines pack, or correct the path"
            )
        absent.add(key)
        lines.append(f"data        {shards}: data not found, not checked; {num_samples:,} samples as configured")
    if absent.isdisjoint(keys):
        opened = open_sources(experiment)
        if len(opened) > 1 or not all(source.selection.is_all for source in opened):
            drawn = [f"{int(source.selection.sizes.sum()):,} of {source.packed.location}" for source in opened]
            lines.append(f"data        an epoch draws {data.drawn_samples:,} samples: {', '.join(drawn)}")
        lines += _report_cache(opened, experiment)
    return list(dict.fromkeys(lines))


def _report_cache(sources: Sequence[Source], experiment: Experiment) -> list[str]:
    """How much of the cache a full node uses; the stream itself refuses a cap that is too small."""
    cluster = experiment.cluster
    if not any(source.packed.location.is_remote for source in sources):
        return []
    world = cluster.num_devices if cluster.num_devices != "auto" else 1
    per_node = min(world, RANKS_PER_NODE)
    num_lanes = lanes.resolve_lanes(experiment.global_batch_size, experiment.data.lanes)
    needed = needed_bytes(sources, experiment, num_lanes, world, per_node, experiment.data.shuffle_window)
    return [f"cache       {_gib(needed)} of {_gib(cluster.cache.max_bytes)} in use on a node of {per_node} ranks"]


def _answers(location: Location, experiment: Experiment) -> bool:
    """Whether there is anything at a remote place; a machine without a network cannot check the data."""
    transport = open_transport(location, experiment.cluster.remote, allow_pipe=experiment.data.allow_pipe)
    try:
        transport.get(TABLE_FILE)
    except (TransportError, DataError):
        return False
    return True


def _has_shards(folder: Path) -> bool:
    return (folder / TABLE_FILE).exists() or any(folder.glob("*.tar"))


def _check_split(experiment: Experiment, key: str, shards: str, num_samples: int, same_classes: bool) -> str:
    packed = open_packed(shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe)
    table = packed.table
    num_classes = experiment.data.num_classes if same_classes else table.num_classes
    count_key = key.replace(".train_shards", ".num_train_samples").replace(".shards", ".num_samples")
    training = not key.startswith("evaluation")
    counts = [("data.num_classes", table.num_classes, num_classes)]
    if not training or experiment.data.sources[_place_in_mixture(key)].drop_list is None:
        counts.insert(0, (count_key, table.num_samples, num_samples))
    for name, found, expected in counts:
        if found != expected:
            raise DataError(
                f"{packed.location.url(TABLE_FILE)}: the set has {found:,}, {name} says {expected:,}; "
                f"set {name}: {found}, or {key} to the set that was meant"
            )
    packed.check_files()
    if training and table.max_labels > 1 and experiment.objective.name == "softmax":
        raise ConfigError(
            f"objective.name: softmax takes one label per image, but {shards} has up to {table.max_labels}; use sigmoid"
        )
    return f"data        {shards}: {table.num_samples:,} samples in {len(table.rows):,} shards, digest {table.digest}"


def _place_in_mixture(key: str) -> int:
    match = re.search(r"mixture\.(\d+)", key)
    return int(match[1]) if match else 0


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _place(message: str, resolved: Resolved) -> str:
    """The file and line of the key that a message starts with; the config file where it starts with none."""
    match = re.match(r"([a-z_]+(?:\.[a-z_]+)*): ", message)
    return resolved.where(match[1]) if match else resolved.path


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _gib(num_bytes: Any) -> str:
    gib = num_bytes / GIB
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:,.1f} MiB"
