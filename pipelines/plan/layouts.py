"""The ways to divide a step among the devices: sharding × checkpointing policy × micro-batch, with memory and time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrain.config.devices import Device
from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.registry import family_of
from pretrain.sharding.choice import (
    other_shardings,
    possible_micro_batches,
    possible_shardings,
    refusals,
    sharding_of,
)
from pretrain.sharding.protocol import Memory, Sharding, size_text
from pretrain.sharding.step import Step, step_of
from pretrain.sharding.work import image_flops, mean_over_sizes

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
        step_s: estimated: computation, with recomputation and the matrix products of the update, at the given MFU, plus
            communication without any overlap.
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

    @property
    def num_nodes(self) -> int:
        """The nodes that the devices fill; the last one may not be full."""
        return math.ceil(self.num_devices / self.device.per_node)


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
    return _layouts(experiment, machine, possible_shardings(experiment))


def better_elsewhere(experiment: Experiment, machine: Machine, chosen: Layout | None) -> Layout | None:
    """The fastest layout of another backend that holds or sends at least 5 % less than the chosen one.

    It has the same policy and micro-batch, so that only the sharding differs. If nothing is chosen because nothing
    fits, it is the one to recommend.
    """
    found = _layouts(experiment, machine, other_shardings(experiment))
    if chosen is None:
        return recommend(found)
    same = [layout for layout in found if layout.fits and layout.row[1:] == chosen.row[1:]]
    better = [
        layout for layout in same if layout.micro_batch_size == chosen.micro_batch_size and _saves(layout, chosen)
    ]
    return min(better, key=lambda layout: layout.step_s, default=None)


def _saves(layout: Layout, chosen: Layout) -> bool:
    less = 1 - TOLERANCE
    return layout.memory.peak < less * chosen.memory.peak or layout.sent_bytes < less * chosen.sent_bytes


def _layouts(experiment: Experiment, machine: Machine, shardings: Sequence[Sharding]) -> list[Layout]:
    policies = {policy: with_policy(experiment, policy) for policy in possible_policies(experiment)}
    return [
        layout
        for sharding in shardings
        for changed in policies.values()
        if not refusals(changed, sharding)
        for layout in _by_micro_batch(changed, machine, sharding)
    ]


def _by_micro_batch(experiment: Experiment, machine: Machine, sharding: Sharding) -> Iterator[Layout]:
    policy = experiment.cluster.activation_checkpointing
    flops = image_flops(experiment)
    macs = mean_over_sizes(
        experiment, lambda one: family_of(one.model).recomputed_macs(one.trained_model, policy), experiment.num_steps
    )
    recomputed = 2 * macs / flops
    per_device = experiment.mean_batch_size / machine.num_devices
    compute_s = flops * per_device * (1 + recomputed) / machine.flops
    sizes = possible_micro_batches(experiment, machine.num_devices)
    smallest = step_of(experiment, machine.num_devices, sizes[0])
    for size in sizes:
        step = smallest.with_micro_batch(size)
        memory = sharding.memory(step)
        owned = step.owned(together=sharding.updates_together)
        update_s = (owned.flops + owned.refresh / experiment.optim.refresh_every) / machine.flops
        sent = round(sum(one.sent(machine.num_devices) for one in sharding.traffic(step)))
        yield Layout(
            sharding=sharding,
            policy=policy,
            step=step,
            memory=memory,
            fits=memory.peak <= machine.limit_bytes,
            sent_bytes=sent,
            step_s=compute_s + update_s + sent / machine.link_bytes_s,
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


def explain(experiment: Experiment, machine: Machine, found: list[Layout], chosen: Layout) -> list[str]:
    """Why this layout is recommended."""
    reasons = [_why_stage(machine, found, chosen)]
    if chosen.policy == "none":
        reasons.append(
            f"checkpointing none: the activations of {chosen.micro_batch_size} images fit "
            f"({size_text(chosen.memory.activations + chosen.memory.working)}), so nothing needs to be computed twice"
        )
    else:
        reasons.append(
            f"checkpointing {chosen.policy}: without it no micro-batch of this size fits; it adds "
            f"{chosen.recomputed:.0%} to the FLOPs of a step"
        )
    reasons.append(
        f"micro-batch {chosen.micro_batch_size}: the largest even divisor of the "
        f"{experiment.global_batch_size // machine.num_devices} images per device that fits"
        if experiment.cluster.micro_batch_size == "auto"
        else f"micro-batch {chosen.micro_batch_size}: as configured"
    )
    return [*reasons, *_pauses(experiment, machine, chosen)]


def _pauses(experiment: Experiment, machine: Machine, chosen: Layout) -> list[str]:
    refresh = chosen.step.owned(together=chosen.sharding.updates_together).refresh
    if not refresh:
        return []
    return [
        f"optimiser: every {experiment.optim.refresh_every} updates its factors are decomposed, {refresh / 1e12:.2g} "
        f"TFLOP on the rank that owns the most; that step is at least {refresh / machine.flops:.2g} s longer (at the "
        "speed of matrix products, which decompositions do not reach)"
    ]


def _why_stage(machine: Machine, found: list[Layout], chosen: Layout) -> str:
    held = chosen.memory.state + chosen.memory.gradients
    text = f"{chosen.sharding.name}: weights, gradients and optimiser take {size_text(held)} per device"
    if not chosen.sharding.keeps_complete_weights:
        return f"{text}; with less sharding no micro-batch fits, or the step is longer"
    others = [
        layout for layout in found if not layout.sharding.keeps_complete_weights and layout.policy == chosen.policy
    ]
    if not others:
        return text
    other = min(others, key=lambda layout: abs(layout.micro_batch_size - chosen.micro_batch_size))
    saved = chosen.memory.peak - other.memory.peak
    return (
        f"{text} of {size_text(machine.limit_bytes)}. {other.sharding.name} is needless here: it would gather every "
        "layer's weights before their use, to "
        + (f"free {size_text(saved)}" if saved > 0 else "free nothing (its own buffers and copies take what it saves)")
        + f"; a step is estimated at {other.step_s:.3g} s instead of {chosen.step_s:.3g} s"
    )
