"""How many images a device takes in one pass, and what they need. No torch.

Legend: B images per global batch · R ranks.
"""

from __future__ import annotations

from typing import Any, Literal

from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError
from pretrain.models import budget
from pretrain.sharding.zero_memory import Buckets, MemoryBytes

Backend = Literal["deepspeed", "accelerate"]
GIB = 2**30
RESERVED_BYTES = 2 * GIB  # CUDA context, communication library, fragmentation: what the memory model leaves out
LARGEST_BLIND_MICRO_BATCH = 64  # where the device's memory is not known


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
    memory = known_memory(experiment, device_memory_bytes) if budget.can_tell(experiment.model) else None
    if wanted == "auto":
        chosen = _largest_that_fits(experiment, world, memory, backend)
        return chosen, per_rank // chosen
    require_divisor(wanted, total, world)
    if memory is not None and (needed := _peak_bytes(experiment, world, wanted, backend)) > memory:
        raise ConfigError(
            f"cluster.micro_batch_size: {wanted} needs about {gib(needed)} of {gib(memory)} per device; "
            + _memory_remedy(experiment)
        )
    return wanted, per_rank // wanted


def require_divisor(micro_batch_size: int, global_batch_size: int, world: int) -> None:
    """Raises ConfigError: the micro-batch does not divide the images of a rank."""
    per_rank = global_batch_size // world
    if per_rank % micro_batch_size:
        allowed = ", ".join(str(size) for size in _divisors(per_rank))
        raise ConfigError(
            f"cluster.micro_batch_size: {micro_batch_size} does not divide the {per_rank} images per rank "
            f"({global_batch_size} over {world} ranks); possible: {allowed}"
        )


def known_memory(experiment: Experiment, detected: int | None) -> int | None:
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
            f"cluster.micro_batch_size: even {sizes[0]} images need about {gib(needed)} and {gib(RESERVED_BYTES)} "
            f"reserve of {gib(memory)} per device; {_memory_remedy(experiment)}"
        )
    return fitting[-1]


def memory_of(experiment: Experiment, world: int, micro_batch_size: int, backend: Backend) -> MemoryBytes:
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
        num_temporaries=experiment.optim.num_temporaries,
        accumulates=experiment.global_batch_size // world > micro_batch_size,
        buckets=Buckets.of(cluster.deepspeed),
    )


def _peak_bytes(experiment: Experiment, world: int, micro_batch_size: int, backend: Backend) -> int:
    return memory_of(experiment, world, micro_batch_size, backend).peak


def _memory_remedy(experiment: Experiment) -> str:
    cluster = experiment.cluster
    ways = ["a smaller micro-batch"] if cluster.micro_batch_size != "auto" else []
    if cluster.activation_checkpointing == "none":
        ways.append("cluster.activation_checkpointing: full")
    if cluster.zero_stage < 3:
        ways.append(f"cluster.zero_stage: {cluster.zero_stage + 1}")
    return f"try {', '.join([*ways, 'more devices'])}"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def gib(num_bytes: Any) -> str:
    gib = num_bytes / GIB
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:,.1f} MiB"
