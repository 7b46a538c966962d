"""The ways to divide a step among the devices: sharding × checkpointing policy × micro-batch, with memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.models import budget
from pretrain.sharding.choice import possible_shardings, refusals, sharding_of
from pretrain.sharding.memory import Memory
from pretrain.sharding.micro_batch import possible_micro_batches
from pretrain.sharding.protocol import Sharding
from pretrain.sharding.step import Step, step_of

TOLERANCE = 0.05


@dataclass(frozen=True)
class Layout:
    """One way to divide a step among the devices.

    Attributes:
        sharding: how the training state is divided.
        policy: of activation checkpointing.
        step: of one device.
        memory: of one device.
        fits: the peak and the reserve are within the device's memory.
        sent_bytes: by one device in one step.
        step_s: estimated: computation, with recomputation, at the given MFU, plus communication without any overlap.
        recomputed: share of the step's FLOPs that is done twice.
    """

    sharding: Sharding
    policy: str
    step: Step
    memory: Memory
    fits: bool
    sent_bytes: int
    step_s: float
    recomputed: float

    @property
    def micro_batch_size(self) -> int:
        """Images per device in one pass."""
        return self.step.micro_batch_size

    @property
    def row(self) -> tuple[str, str]:
        """Sharding and policy, which layouts that differ only in the micro-batch share."""
        return self.sharding.name, self.policy


@dataclass(frozen=True)
class Machine:
    """The hardware that the run would use.

    Attributes:
        limit_bytes: memory available to the tensors of one device.
        flops: that one device delivers: peak × MFU.
        link_bytes_s: from one device to its peers: in the node, or through the network where there are several nodes.
    """

    device: Device
    num_devices: int
    limit_bytes: int
    flops: float
    link_bytes_s: float


def with_policy(experiment: Experiment, policy: str) -> Experiment:
    """The experiment with another policy of activation checkpointing."""
    cluster = experiment.cluster.model_copy(update={"activation_checkpointing": policy})
    return experiment.model_copy(update={"cluster": cluster})


def possible_policies(experiment: Experiment) -> list[str]:
    """Checkpointing policies of the model, the configured one among them."""
    policies = ["every_2" if policy == "every_k" else policy for policy in experiment.model.family.policies]
    configured = experiment.cluster.activation_checkpointing
    if configured not in policies:
        policies.insert(len(policies) - 1, configured)
    return policies


def configured_row(experiment: Experiment) -> tuple[str, str]:
    """``Layout.row`` of the configured sharding and policy."""
    return sharding_of(experiment).name, experiment.cluster.activation_checkpointing


def all_layouts(experiment: Experiment, machine: Machine) -> list[Layout]:
    """Every supported sharding × policy × micro-batch, in this order."""
    policies = {policy: with_policy(experiment, policy) for policy in possible_policies(experiment)}
    return [
        layout
        for sharding in possible_shardings(experiment)
        for changed in policies.values()
        if not refusals(changed, sharding)
        for layout in _by_micro_batch(changed, machine, sharding)
    ]


def _by_micro_batch(experiment: Experiment, machine: Machine, sharding: Sharding) -> Iterator[Layout]:
    policy = experiment.cluster.activation_checkpointing
    forward = budget.forward_macs(experiment.model, experiment.num_outputs)
    recomputed = budget.recomputed_macs(experiment.model, policy) / (3 * forward)
    per_device = experiment.global_batch_size // machine.num_devices
    compute_s = 6 * forward * per_device * (1 + recomputed) / machine.flops
    sizes = possible_micro_batches(experiment, machine.num_devices)
    smallest = step_of(experiment, machine.num_devices, sizes[0])
    for size in sizes:
        step = smallest.with_micro_batch(size)
        memory = sharding.memory(step)
        sent = round(sum(one.sent(machine.num_devices) for one in sharding.traffic(step)))
        yield Layout(
            sharding=sharding,
            policy=policy,
            step=step,
            memory=memory,
            fits=memory.peak <= machine.limit_bytes,
            sent_bytes=sent,
            step_s=compute_s + sent / machine.link_bytes_s,
            recomputed=recomputed,
        )


def largest_fitting(layouts: Sequence[Layout], sharding: str, policy: str) -> Layout | None:
    """The largest micro-batch that fits, for one sharding (by name) and policy."""
    fitting = [layout for layout in layouts if layout.fits and layout.row == (sharding, policy)]
    return max(fitting, key=lambda layout: layout.micro_batch_size, default=None)


def recommend(layouts: Sequence[Layout]) -> Layout | None:
    """The fastest that fits; among those within 5 % of its time the least sharded, then the largest micro-batch.

    The estimates are no more precise than that. Less sharding has fewer moving parts; a larger micro-batch runs fewer
    and larger kernels.
    """
    fitting = [layout for layout in layouts if layout.fits]
    if not fitting:
        return None
    fastest = min(layout.step_s for layout in fitting)
    return min((layout for layout in fitting if layout.step_s <= (1 + TOLERANCE) * fastest), key=_plainness)


def _plainness(layout: Layout) -> tuple[int, float, int]:
    return layout.sharding.stage, layout.recomputed + (layout.policy == "selective"), -layout.micro_batch_size
