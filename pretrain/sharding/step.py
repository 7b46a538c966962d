"""The properties of a training step that decide its memory and traffic. Does not import torch.

Legend: R ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.protocol import FP32, WEIGHT_BYTES, Footprint, Precision
from pretrain.models.families.registry import family_of
from pretrain.sharding.complete import Owned
from pretrain.sharding.messages import Cut, most_allocated
from pretrain.sharding.teacher import teacher_bytes
from pretrain.sharding.weights import Weights, weights_of


def sums_in_fp32(passed_on: Mapping[str, Any]) -> bool:
    """Whether gradients are summed and reduced in fp32, also those of bf16 weights (``cluster.passed_on``)."""
    return passed_on.get("data_types", {}).get("grad_accum_dtype") == "fp32"


@dataclass(frozen=True)
class DeepSpeedSettings:
    """DeepSpeed's settings that decide memory and traffic, in elements.

    DeepSpeed's own bucket of 500 million elements is larger than all gradients of a ViT-L/16, so that nothing would
    be reduced before the end of the backward pass. Ours holds four blocks of an L/16 or two of an H/14, which are 100
    or 200 MB: enough for the full bandwidth of a node.

    Attributes:
        reduce_bucket: gradients that are reduced at once.
        max_reuse_distance: stage 3 keeps a gathered weight whose next use is closer than this.
        persistence_threshold: stage 3 does not shard tensors of at most this size.
        overlap: stages 1 and 2 fill a second bucket while the first is reduced.
    """

    reduce_bucket: int = 50_000_000
    max_reuse_distance: int = 1_000_000_000
    persistence_threshold: int = 100_000
    overlap: bool = True

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Our settings of DeepSpeed's section ``zero_optimization`` where they differ from DeepSpeed's defaults."""
        size = cls.reduce_bucket
        return {"overlap_comm": cls.overlap, "reduce_bucket_size": size, "allgather_bucket_size": size}

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
class Fsdp2Settings:
    """The settings of ``fully_shard`` that decide memory and traffic.

    Attributes:
        reshard_after_forward: release each block after its forward pass, and gather it again for the backward pass.
    """

    reshard_after_forward: bool = True

    @classmethod
    def of(cls, passed_on: Mapping[str, Any]) -> Fsdp2Settings:
        """Reads them from ``cluster.passed_on``."""
        return cls(bool(passed_on.get("reshard_after_forward", cls.reshard_after_forward)))


@dataclass(frozen=True)
class OptimizerState:
    """The optimiser's states and temporaries, in fp32 values per trained weight (a bf16 value counts as half).

    Attributes:
        num_states: values kept between updates: 2 for AdamW, 1 for SGD with momentum. Those of tensors that are
            updated as complete ones are counted separately (``Weights.complete``).
        num_temporaries: values allocated during an update. AdamW needs one on a GPU, where it updates all tensors at
            once, and two on a CPU. Complete tensors are updated one by one.
        has_average: whether an EMA of the weights is kept.
        reads_weights: updates of complete tensors depend on their weights too.
    """

    num_states: float = 2.0
    num_temporaries: int = 1
    has_average: bool = False
    reads_weights: bool = False


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
        sums_in_fp32: gradients are summed and reduced in fp32, also those of bf16 weights.
        deepspeed: DeepSpeed's settings.
        fsdp2: those of ``fully_shard``.
        teacher: bytes of the frozen teacher of a distillation.
    """

    footprint: Footprint
    weights: Weights
    precision: Precision
    num_devices: int
    micro_batch_size: int
    accumulation_steps: int = 1
    optimizer: OptimizerState = OptimizerState()
    sums_in_fp32: bool = False
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    fsdp2: Fsdp2Settings = Fsdp2Settings()
    teacher: int = 0

    def with_micro_batch(self, size: int) -> Step:
        """This step with the same images per device in passes of another size, which must divide them."""
        images = self.micro_batch_size * self.accumulation_steps
        return replace(self, micro_batch_size=size, accumulation_steps=images // size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight, and of its gradient before it is summed."""
        return WEIGHT_BYTES[self.precision]

    def reduced_bytes(self, plain: int, multiple: int = 1) -> int:
        """Bytes of all gradients as ZeRO reduces them.

        Args:
            plain: bytes of one number. With autocast DeepSpeed reduces dense and convolution layers in bf16 instead.
            multiple: each tensor is padded to a multiple of so many elements.
        """
        weights = self.weights
        cast = WEIGHT_BYTES["bf16"] if self.precision == "autocast" else plain
        return sum(
            -(-size // multiple) * multiple * (cast if is_cast else plain)
            for size, is_trained, is_cast in zip(weights.sizes, weights.trained, weights.cast, strict=True)
            if is_trained
        )

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient in a sum over micro-steps and ranks."""
        return FP32 if self.sums_in_fp32 else self.weight_bytes

    @property
    def sums_in_place(self) -> bool:
        """Whether stages 1 and 2 sum this rank's share of the gradients in the fp32 tensor that the update reads."""
        return self.gradient_bytes > self.weight_bytes

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

    @property
    def elementwise(self) -> Step:
        """This step, as if the parameters that are updated as complete tensors were frozen."""
        return replace(self, weights=self.weights.elementwise)

    def owned(self, *, together: bool) -> Owned:
        """The most that a rank owns of complete tensors; ``together``: all groups are updated at the same time."""
        return Owned.most(self.weights.updated(together=together), self.num_devices)

    def state_bytes(self, elements: int, owned: Owned) -> int:
        """Bytes of the optimiser's state for a number of weights that are updated one by one, and owned tensors."""
        return int(FP32 * self.optimizer.num_states * elements) + int(FP32 * owned.kept)

    def working_bytes(self, elements: int, cut: Cut, *, together: bool) -> int:
        """Bytes of the temporaries of an update, where the parameters are sharded.

        Args:
            elements: weights of this rank that are updated one by one.
            cut: how tensors that are updated as complete ones are sharded.
            together: whether all groups are updated at the same time.
        """
        optimizer, groups = self.optimizer, self.weights.updated(together=together)
        read = 2 if optimizer.reads_weights else 1
        allocated = most_allocated(groups, self.num_devices, cut, read)
        return max(self.temporary_bytes(elements), FP32 * allocated)

    def average_bytes(self, elements: int) -> int:
        """Bytes of the EMA of a number of weights; 0 if there is none."""
        return FP32 * elements if self.optimizer.has_average else 0

    def temporary_bytes(self, elements: int) -> int:
        """Bytes of the temporaries of an update of a number of weights."""
        return FP32 * self.optimizer.num_temporaries * elements


def _footprint(experiment: Experiment) -> Footprint:
    """The weights of the model, and the activations of its largest training images."""

    def at(model: ModelConfig) -> Footprint:
        policy = experiment.cluster.activation_checkpointing
        return family_of(model).footprint(
            model, experiment.num_outputs, precision=experiment.precision, checkpointing=policy
        )

    own, heaviest = at(experiment.trained_model), experiment.image_sizes.heaviest
    if heaviest == Tiling(experiment.model.size):
        return own
    largest = at(experiment.at_tiling(heaviest).trained_model)
    return replace(own, kept=largest.kept, working=largest.working)


def step_of(experiment: Experiment, num_devices: int, micro_batch_size: int) -> Step:
    """The step that an experiment describes.

    Args:
        experiment: the settings; the cost of its model must be known (``cost_is_known``).
        num_devices: R.
        micro_batch_size: images per device in one pass; it divides the images per device.

    Raises:
        ConfigError: an override of the optimiser matches no parameter.
    """
    optim, cluster = experiment.optim, experiment.cluster
    return Step(
        footprint=_footprint(experiment),
        weights=weights_of(experiment),
        precision=experiment.precision,
        num_devices=num_devices,
        micro_batch_size=micro_batch_size,
        accumulation_steps=experiment.global_batch_size // num_devices // micro_batch_size,
        optimizer=OptimizerState(
            num_states=optim.own_states,
            num_temporaries=optim.num_temporaries,
            has_average=optim.ema_decay is not None,
            reads_weights=optim.reads_weights,
        ),
        sums_in_fp32=sums_in_fp32(cluster.passed_on),
        deepspeed=DeepSpeedSettings.of(cluster.passed_on),
        fsdp2=Fsdp2Settings.of(cluster.passed_on),
        teacher=teacher_bytes(experiment) or 0,
    )
