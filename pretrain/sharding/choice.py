"""Chooses the sharding that an experiment asks for, and a micro-batch that fits the memory of a device. No torch.

Legend: B images per global batch · R ranks.
"""

from __future__ import annotations

from pretrain.config import combinations
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError
from pretrain.models.families.registry import cost_is_known
from pretrain.sharding.fsdp2 import FSDP2
from pretrain.sharding.protocol import GIB, Sharding, size_text
from pretrain.sharding.replicated import DDP, ZERO_0
from pretrain.sharding.step import step_of
from pretrain.sharding.zero import Zero

# Backend → its shardings, the least sharded first. ``cluster.stage`` is the index; of a backend with only one sharding,
# that is the one (a cluster file with a stage serves both scripts).
SHARDINGS: dict[str, tuple[Sharding, ...]] = {
    "deepspeed": (ZERO_0, Zero(1), Zero(2), Zero(3)),
    "accelerate": (DDP,),
    "fsdp2": (FSDP2,),
}


def sharding_of(experiment: Experiment, entry_backend: str = "deepspeed") -> Sharding:
    """The sharding that an experiment trains with.

    Args:
        experiment: the settings.
        entry_backend: the backend that ``cluster.backend: auto`` means in the calling script.
    """
    possible = SHARDINGS[experiment.cluster.backend_in(entry_backend)]
    return possible[min(experiment.cluster.stage, len(possible) - 1)]


def refusals(experiment: Experiment, sharding: Sharding) -> list[tuple[str, str]]:
    """(key, reason) of every setting of an experiment that does not work with a sharding."""
    return _ignored(experiment, sharding) + combinations.refusals(
        sharding=sharding.name,
        precision=experiment.precision,
        compile=experiment.cluster.compile,
        activation_checkpointing=experiment.cluster.activation_checkpointing,
    )


def _ignored(experiment: Experiment, sharding: Sharding) -> list[tuple[str, str]]:
    settings = experiment.cluster.own_settings
    if not settings or sharding.engine(experiment.precision) == sharding.backend:
        return []
    found = ", ".join(settings)
    return [
        (
            "cluster.deepspeed",
            f"{found} would be ignored, as {sharding.name} with precision: {experiment.precision} does not use "
            "DeepSpeed; remove it, or use cluster.zero_stage: 1",
        )
    ]


def require_supported(experiment: Experiment, sharding: Sharding) -> None:
    """Raises ConfigError if the experiment has a setting that does not work with the sharding."""
    problems = [f"{key}: {reason}" for key, reason in refusals(experiment, sharding)]
    if problems:
        raise ConfigError("\n".join(problems))


def possible_shardings(experiment: Experiment, entry_backend: str = "deepspeed") -> list[Sharding]:
    """The shardings of the experiment's backend that work with its other settings, least sharded first."""
    return [one for one in SHARDINGS[experiment.cluster.backend_in(entry_backend)] if not refusals(experiment, one)]


def other_shardings(experiment: Experiment, entry_backend: str = "deepspeed") -> list[Sharding]:
    """The shardings of other backends that divide the training state and work with the experiment's other settings."""
    own = experiment.cluster.backend_in(entry_backend)
    return [one for one in _supported(experiment) if one.backend != own and one.stage]


def more_sharded(experiment: Experiment, sharding: Sharding) -> Sharding | None:
    """The next sharding that needs less memory and works with the other settings, or None."""
    return min(
        (one for one in _supported(experiment) if one.stage > sharding.stage), key=lambda one: one.stage, default=None
    )


def _supported(experiment: Experiment) -> list[Sharding]:
    return [one for possible in SHARDINGS.values() for one in possible if not refusals(experiment, one)]


RESERVED_BYTES = 2 * GIB  # CUDA context, communication library, fragmentation: not counted in ``Memory``
LARGEST_BLIND_MICRO_BATCH = 64  # if the device's memory is unknown


def resolve_micro_batch(
    experiment: Experiment,
    world: int,
    device_memory_bytes: int | None = None,
    *,
    backend: str = "deepspeed",
) -> tuple[int, int]:
    """Images per device in one pass, and the number of passes per step.

    ``auto`` takes the largest even divisor of B / R that the memory allows; if the memory is unknown, at most 64.

    Args:
        experiment: the settings.
        world: R.
        device_memory_bytes: detected memory; ``cluster.device_memory_gib`` overrides it.
        backend: the backend that ``cluster.backend: auto`` means to the caller.

    Returns:
        (micro_batch_size, accumulation_steps), whose product is B / R.

    Raises:
        ConfigError: R does not divide B, the micro-batch does not divide B / R, or none fits into the memory.
    """
    sharding, wanted = sharding_of(experiment, backend), experiment.cluster.micro_batch_size
    sizes = possible_micro_batches(experiment, world)
    memory = known_memory(experiment, device_memory_bytes) if cost_is_known(experiment.model) else None
    if wanted == "auto":
        chosen = _largest_that_fits(experiment, world, memory, sharding, sizes)
    else:
        chosen = wanted
        if memory is not None and (needed := sharding.memory(step_of(experiment, world, wanted)).peak) > memory:
            raise ConfigError(
                f"cluster.micro_batch_size: {wanted} needs about {size_text(needed)} of {size_text(memory)} per "
                f"device; {_remedy(experiment, sharding)}"
            )
    return chosen, experiment.accumulation_steps(world, chosen)


def possible_micro_batches(experiment: Experiment, world: int) -> list[int]:
    """The configured micro-batch; for ``auto`` the even divisors of B / R, ascending, or B / R if none is even.

    They are even because mixing takes pairs of images.

    Raises:
        ConfigError: R does not divide B, or the configured micro-batch does not divide B / R.
    """
    per_rank, wanted = experiment.images_per_rank(world), experiment.cluster.micro_batch_size
    if wanted == "auto":
        batches = experiment.batches
        even = [size for size in range(2, per_rank + 1, 2) if per_rank % size == 0]
        return [one for one in even if batches.can_be_shared(world, per_rank // one, in_pairs=True)] or [per_rank]
    experiment.accumulation_steps(world, wanted)
    return [wanted]


def known_memory(experiment: Experiment, detected: int | None) -> int | None:
    """Memory of one device in bytes: configured, otherwise detected; None: unknown."""
    stated = experiment.cluster.device_memory_gib
    return detected if stated == "auto" else int(stated * GIB)


def _largest_that_fits(
    experiment: Experiment, world: int, memory: int | None, sharding: Sharding, sizes: list[int]
) -> int:
    if memory is None:
        return max([size for size in sizes if size <= LARGEST_BLIND_MICRO_BATCH] or sizes[:1])
    limit = memory - RESERVED_BYTES
    smallest = step_of(experiment, world, sizes[0])
    peaks = {size: sharding.memory(smallest.with_micro_batch(size)).peak for size in sizes}
    fitting = [size for size, peak in peaks.items() if peak <= limit]
    if not fitting:
        raise ConfigError(
            f"cluster.micro_batch_size: even {sizes[0]} images need about {size_text(peaks[sizes[0]])} and "
            f"{size_text(RESERVED_BYTES)} reserve of {size_text(memory)} per device; {_remedy(experiment, sharding)}"
        )
    return fitting[-1]


def _remedy(experiment: Experiment, sharding: Sharding) -> str:
    cluster, further = experiment.cluster, more_sharded(experiment, sharding)
    ways = ["a smaller micro-batch"] if cluster.micro_batch_size != "auto" else []
    if cluster.activation_checkpointing == "none":
        ways.append("cluster.activation_checkpointing: full")
    if further is not None:
        ways.append(further.setting)
    return f"try {', '.join([*ways, 'more devices'])}"
