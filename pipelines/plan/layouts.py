"""The ways to lay a step over the devices: ZeRO stage × checkpointing policy × micro-batch, with memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.check.memory import require_divisor
from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.models import budget
from pretrain.sharding import zero_memory
from pretrain.sharding.zero_memory import Buckets, MemoryBytes

TOLERANCE = 0.05


@dataclass(frozen=True)
class Layout:
    """One way to lay a step over the devices.

    Attributes:
        memory: of one device.
        fits: the peak and the reserve are within the device's memory.
        sent_bytes: by one device in one step.
        step_s: estimated: computing at the stated MFU with what is recomputed, and communication, none of it hidden.
        recomputed: share of the step's FLOPs that is done twice.
    """

    zero_stage: int
    policy: str
    micro_batch_size: int
    accumulation_steps: int
    memory: MemoryBytes
    fits: bool
    sent_bytes: int
    step_s: float
    recomputed: float


@dataclass(frozen=True)
class Machine:
    """Where the run would go.

    Attributes:
        limit_bytes: what the tensors of one device may take.
        flops: that one device delivers: peak × MFU.
        link_bytes_s: from one device to its peers: in the node, or through the network where there are several nodes.
    """

    device: Device
    num_devices: int
    limit_bytes: int
    flops: float
    link_bytes_s: float


def possible_stages(experiment: Experiment) -> list[int]:
    """ZeRO stages that go with the backend, the precision and compilation."""
    cluster = experiment.cluster
    if cluster.backend == "accelerate":
        return [0]
    if experiment.optim.needs_unsharded:
        return [0]
    stages = [1, 2, 3] if experiment.precision == "bf16" else [0, 1, 2, 3]
    return [stage for stage in stages if not (stage == 3 and cluster.compile)]


def possible_policies(experiment: Experiment) -> list[str]:
    """Checkpointing policies that go with the model and compilation, the configured one among them."""
    cluster = experiment.cluster
    policies = ["every_2" if policy == "every_k" else policy for policy in experiment.model.family.policies]
    if cluster.compile and "selective" in policies:
        policies.remove("selective")
    if cluster.activation_checkpointing not in policies:
        policies.insert(len(policies) - 1, cluster.activation_checkpointing)
    return policies


def micro_batch_sizes(experiment: Experiment, num_devices: int) -> list[int]:
    """Even divisors of the images per device, ascending; the configured size alone where there is one.

    Raises:
        ConfigError: it does not divide the images per device.
    """
    per_device = experiment.global_batch_size // num_devices
    wanted = experiment.cluster.micro_batch_size
    if wanted != "auto":
        require_divisor(wanted, experiment.global_batch_size, num_devices)
        return [wanted]
    divisors = [size for size in range(1, per_device + 1) if per_device % size == 0]
    return [size for size in divisors if size % 2 == 0] or [per_device]


def all_layouts(experiment: Experiment, machine: Machine) -> list[Layout]:
    """Every stage × policy × micro-batch, in this order."""
    return [
        layout
        for stage in possible_stages(experiment)
        for policy in possible_policies(experiment)
        for layout in _by_micro_batch(experiment, machine, stage, policy)
    ]


def _by_micro_batch(experiment: Experiment, machine: Machine, stage: int, policy: str) -> list[Layout]:
    footprint = budget.footprint(
        experiment.model, experiment.num_outputs, precision=experiment.precision, checkpointing=policy
    )
    forward = budget.forward_macs(experiment.model, experiment.num_outputs)
    recomputed = budget.recomputed_macs(experiment.model, policy) / (3 * forward)
    images = experiment.global_batch_size / machine.num_devices
    compute_s = 6 * forward * images * (1 + recomputed) / machine.flops
    buckets = Buckets.of(experiment.cluster.deepspeed)
    layouts = []
    for micro in micro_batch_sizes(experiment, machine.num_devices):
        accumulation = experiment.global_batch_size // machine.num_devices // micro
        memory = zero_memory.memory_bytes(
            footprint,
            precision=experiment.precision,
            zero_stage=stage,
            num_devices=machine.num_devices,
            micro_batch_size=micro,
            num_optimizer_states=experiment.optim.num_states,
            num_temporaries=experiment.optim.num_temporaries,
            accumulates=accumulation > 1,
            buckets=buckets,
        )
        sent = zero_memory.communication_bytes(
            footprint,
            precision=experiment.precision,
            zero_stage=stage,
            num_devices=machine.num_devices,
            accumulation_steps=accumulation,
            buckets=buckets,
        )
        layouts.append(
            Layout(
                zero_stage=stage,
                policy=policy,
                micro_batch_size=micro,
                accumulation_steps=accumulation,
                memory=memory,
                fits=memory.peak <= machine.limit_bytes,
                sent_bytes=sent,
                step_s=compute_s + sent / machine.link_bytes_s,
                recomputed=recomputed,
            )
        )
    return layouts


def largest_fitting(layouts: Sequence[Layout], zero_stage: int, policy: str) -> Layout | None:
    """Of one stage and policy the largest micro-batch that fits."""
    fitting = [
        layout for layout in layouts if layout.fits and (layout.zero_stage, layout.policy) == (zero_stage, policy)
    ]
    return max(fitting, key=lambda layout: layout.micro_batch_size, default=None)


def recommend(layouts: Sequence[Layout]) -> Layout | None:
    """The fastest that fits; of those that take the same time (to 5 %) the lowest stage, then the largest micro-batch.

    The estimates are no better than that. A lower stage has fewer moving parts, a larger micro-batch fewer and larger
    kernels.
    """
    fitting = [layout for layout in layouts if layout.fits]
    if not fitting:
        return None
    fastest = min(layout.step_s for layout in fitting)
    return min((layout for layout in fitting if layout.step_s <= (1 + TOLERANCE) * fastest), key=_plainness)


def _plainness(layout: Layout) -> tuple[int, float, int]:
    return layout.zero_stage, layout.recomputed + (layout.policy == "selective"), -layout.micro_batch_size
