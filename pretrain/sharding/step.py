"""The properties of a training step that decide its memory and traffic. Does not import torch.

Legend: R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pretrain.config.schema.experiment import Experiment
from pretrain.models import budget
from pretrain.models.footprint import FP32, WEIGHT_BYTES, Footprint, Precision
from pretrain.optim.groups import Rule, assign_rules


@dataclass(frozen=True)
class DeepSpeedSettings:
    """DeepSpeed's settings that decide memory and traffic, in elements; the defaults are DeepSpeed's.

    Attributes:
        reduce_bucket: gradients that are reduced at once.
        max_reuse_distance: stage 3 keeps a gathered weight whose next use is closer than this.
        persistence_threshold: stage 3 does not shard tensors of at most this size.
        overlap: stages 1 and 2 fill a second bucket while the first is reduced.
    """

    reduce_bucket: int = 500_000_000
    max_reuse_distance: int = 1_000_000_000
    persistence_threshold: int = 100_000
    overlap: bool = False

    @classmethod
    def of(cls, deepspeed: Mapping[str, Any]) -> DeepSpeedSettings:
        """Reads them from ``cluster.deepspeed``."""
        zero = deepspeed.get("zero_optimization", {})
        return cls(
            reduce_bucket=int(float(zero.get("reduce_bucket_size", cls.reduce_bucket))),
            max_reuse_distance=int(float(zero.get("stage3_max_reuse_distance", cls.max_reuse_distance))),
            persistence_threshold=int(float(zero.get("stage3_param_persistence_threshold", cls.persistence_threshold))),
            overlap=bool(zero.get("overlap_comm", cls.overlap)),
        )


@dataclass(frozen=True)
class Weights:
    """Sizes of a model's parameters in elements.

    Attributes:
        sizes: size of every parameter, in the order of the model.
        trained: for each parameter, whether it is trained or frozen.
        groups: sizes of the trained parameters by parameter group of the optimiser.
    """

    sizes: tuple[int, ...]
    trained: tuple[bool, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sizes: Mapping[str, int], rules: Mapping[str, Rule]) -> Weights:
        """Groups the parameters as ``pretrain.optim.groups.parameter_groups`` does.

        Args:
            sizes: parameter name → elements, in the order of the model.
            rules: parameter name → how it is trained.
        """
        groups: dict[Rule, list[int]] = {}
        for name, size in sizes.items():
            if not rules[name].frozen:
                groups.setdefault(rules[name], []).append(size)
        trained = tuple(not rules[name].frozen for name in sizes)
        return cls(tuple(sizes.values()), trained, tuple(map(tuple, groups.values())))

    @cached_property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes)

    @cached_property
    def num_trained(self) -> int:
        """Elements of the trained parameters."""
        return sum(map(sum, self.groups))

    @property
    def num_frozen(self) -> int:
        """Elements of the frozen parameters."""
        return self.num_parameters - self.num_trained

    def of_kind(self, *, trained: bool) -> list[int]:
        """Sizes of the trained parameters, or of the frozen ones."""
        return [size for size, is_trained in zip(self.sizes, self.trained, strict=True) if is_trained == trained]


@dataclass(frozen=True)
class OptimizerState:
    """The optimiser's states and temporaries, in fp32 values per trained weight (a bf16 value counts as half).

    Attributes:
        num_states: values kept between updates: 2 for AdamW, 1 for SGD with momentum. Adafactor's row and column means
            are left out: they are three orders of magnitude smaller than the rest.
        num_temporaries: values allocated during an update. AdamW needs one on a GPU, where it updates all tensors at
            once, and two on a CPU.
        has_average: whether an EMA of the weights is kept.
    """

    num_states: float = 2.0
    num_temporaries: int = 1
    has_average: bool = False


@dataclass(frozen=True)
class Step:
    """One optimiser step of a rank.

    Attributes:
        footprint: memory footprint of the model, at this precision and activation-checkpointing policy.
        weights: sizes of the model's parameters.
        precision: as in the experiment; bf16 weights have fp32 master weights.
        num_devices: R.
        micro_batch_size: images per device in one forward and backward pass.
        accumulation_steps: passes per step. With more than one, gradients are held along with activations.
        optimizer: its state.
        deepspeed: DeepSpeed's settings.
    """

    footprint: Footprint
    weights: Weights
    precision: Precision
    num_devices: int
    micro_batch_size: int
    accumulation_steps: int = 1
    optimizer: OptimizerState = OptimizerState()
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()

    def with_micro_batch(self, size: int) -> Step:
        """This step with the same images per device in passes of another size, which must divide them."""
        images = self.micro_batch_size * self.accumulation_steps
        return replace(self, micro_batch_size=size, accumulation_steps=images // size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight and of its gradient."""
        return WEIGHT_BYTES[self.precision]

    @property
    def accumulates(self) -> bool:
        """Whether a step has several passes (gradient accumulation)."""
        return self.accumulation_steps > 1

    @property
    def activations(self) -> int:
        """Bytes that the forward pass of a micro-batch keeps, including copies of weights in another type."""
        return self.micro_batch_size * self.footprint.kept + self.footprint.copies

    @property
    def working(self) -> int:
        """Additional bytes that the backward pass of a micro-batch needs."""
        return self.micro_batch_size * self.footprint.working

    def state_bytes(self, elements: int) -> int:
        """Bytes of the optimiser's state for a number of weights."""
        return int(FP32 * self.optimizer.num_states * elements)

    def average_bytes(self, elements: int) -> int:
        """Bytes of the EMA of a number of weights; 0 if there is none."""
        return FP32 * elements if self.optimizer.has_average else 0

    def temporary_bytes(self, elements: int) -> int:
        """Bytes of the temporaries of an update of a number of weights."""
        return FP32 * self.optimizer.num_temporaries * elements


def step_of(experiment: Experiment, num_devices: int, micro_batch_size: int) -> Step:
    """The step that an experiment describes.

    Args:
        experiment: the settings; the cost of its model must be known (``budget.can_tell``).
        num_devices: R.
        micro_batch_size: images per device in one pass; it divides the images per device.

    Raises:
        ConfigError: an override of the optimiser matches no parameter.
    """
    model, optim, cluster = experiment.model, experiment.optim, experiment.cluster
    return Step(
        footprint=budget.footprint(
            model,
            experiment.num_outputs,
            precision=experiment.precision,
            checkpointing=cluster.activation_checkpointing,
        ),
        weights=weights_of(experiment),
        precision=experiment.precision,
        num_devices=num_devices,
        micro_batch_size=micro_batch_size,
        accumulation_steps=experiment.global_batch_size // num_devices // micro_batch_size,
        optimizer=OptimizerState(
            num_states=optim.own_states,
            num_temporaries=optim.num_temporaries,
            has_average=optim.ema_decay is not None,
        ),
        deepspeed=DeepSpeedSettings.of(cluster.deepspeed),
    )


def weights_of(experiment: Experiment) -> Weights:
    """Sizes of the experiment's parameters by the groups that its optimiser updates them in."""
    model, optim = experiment.model, experiment.optim
    shapes = budget.parameter_shapes(model, experiment.num_outputs)
    layer_ids = None if optim.layer_decay is None else budget.layer_ids(model, experiment.num_outputs)
    rules = assign_rules({name: len(shape) for name, shape in shapes.items()}, optim, layer_ids)
    return Weights.of({name: math.prod(shape) for name, shape in shapes.items()}, rules)
