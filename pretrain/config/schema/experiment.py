"""The whole experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.families import forms_where
from pretrain.config.schema.base import Strict
from pretrain.config.schema.checkpoint import CheckpointConfig, InitConfig, ResumeConfig
from pretrain.config.schema.cluster import ClusterConfig
from pretrain.config.schema.data import DataConfig
from pretrain.config.schema.evaluation import EvaluationConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.objective import Objective, SoftmaxConfig, makers_of
from pretrain.config.schema.optim import Optim
from pretrain.config.schema.sweep import SweepConfig
from pretrain.config.schema.telemetry import GuardConfig, TelemetryConfig
from pretrain.config.target import IGNORED_PIXEL, IN_WORDS
from pretrain.errors import ConfigError

FORMAT_VERSION = 1
LARGEST_BATCH = 2**24
MOST_SAMPLES = 1e18  # stream positions are 64-bit integers


class Experiment(Strict):
    """One run, pretraining or fine-tuning, from data to result."""

    version: Literal[1] = Field(default=FORMAT_VERSION, description="Version of this format.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")] = Field(
        description="The run folder is output_dir/name."
    )
    output_dir: str = Field(default="runs", description="Parent of the run folders; must be shared by all ranks.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Determines initial weights, sample order, augmentation and dropout."
    )
    duration: Duration = Field(description="Length of the training, such as '90 epochs' or '20_000 steps'.")
    global_batch_size: Annotated[int, Field(gt=0, le=LARGEST_BATCH)] = Field(
        description="Images per optimiser step, summed over all devices."
    )
    precision: Literal["fp32", "bf16", "autocast"] = Field(
        default="bf16",
        description="bf16: weights in bfloat16 with fp32 master weights (ZeRO ≥ 1); autocast: fp32 weights, "
        "matmuls in bfloat16; fp32. Loss, softmax, norms and head are always fp32.",
    )
    tf32: bool = Field(
        default=False,
        description="fp32 matrix products and convolutions in TensorFloat-32, on GPUs that have it (A100 and later).",
    )
    model: ModelConfig
    objective: Objective = Field(default_factory=SoftmaxConfig, description="The training objective.")
    data: DataConfig
    optim: Optim = Field(
        description="The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding "
        "decays."
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    resume: ResumeConfig = Field(default_factory=ResumeConfig)
    init: InitConfig = Field(default_factory=InitConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    sweep: SweepConfig | None = Field(default=None, description="Read by pipelines sweep only; single runs ignore it.")

    @model_validator(mode="after")
    def _lengths_can_be_counted(self) -> Experiment:
        lengths = {
            "duration": self.duration,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep_every": self.checkpoint.keep_every,
            "evaluation.every": self.evaluation.every,
            "resume.cooldown": self.resume.cooldown,
        } | {f"optim.schedule.{name}": length for name, length in self.optim.schedule.durations.items()}
        for key, length in lengths.items():
            if length is not None and self.exact_steps(length) * self.global_batch_size >= MOST_SAMPLES:
                raise ValueError(f"{key}: {length} is longer than {MOST_SAMPLES:.0e} samples; make it shorter")
        return self

    @model_validator(mode="after")
    def _loss_can_fall(self) -> Experiment:
        if self.data.num_classes < self.objective.needs.min_classes:
            raise ValueError(
                f"data.num_classes: {self.data.num_classes}; objective.name: {self.objective.name} divides one between "
                "the classes, so with one class its loss is always 0; use objective.name: sigmoid, or a set of two "
                "classes"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits_model(self) -> Experiment:
        masked, name = self.objective.needs.mask_token, self.objective.name
        family = self.model.family
        if masked and not family.can_mask:
            others = forms_where(lambda other: other.can_mask)
            raise ValueError(f"objective.name: {name} needs model.name: {others}")
        if masked != self.model.mask_token:
            raise ValueError(
                f"objective.name: {name} needs model.mask_token: true"
                if masked
                else "model.mask_token belongs to objective.name: masked_patches; otherwise it would be ignored"
            )
        measurable = self.objective.needs.has_accuracy
        if not measurable and not all(chosen.uses_features for chosen in self.evaluation.sets.values()):
            raise ValueError(
                f"evaluation.sets: a model that predicts {self.objective.needs.outputs} has no accuracy; remove them, "
                "or use the kinds few_shot, knn and logistic, which look at features"
            )
        policy = self.cluster.activation_checkpointing
        if not family.takes_policy(policy):
            others = forms_where(lambda other: other.takes_policy(policy))
            raise ValueError(
                f"cluster.activation_checkpointing: {policy} needs model.name: {others}; use "
                f"{' or '.join(family.policies)}"
            )
        if self.cluster.compile and not family.can_compile:
            others = forms_where(lambda other: other.can_compile)
            raise ValueError(f"cluster.compile: true needs model.name: {others}, whose blocks are compiled one by one")
        return self

    @model_validator(mode="after")
    def _evaluation_fits_targets(self) -> Experiment:
        target = self.objective.needs.target
        for name, chosen in self.evaluation.sets.items():
            wanted = chosen.target
            if target is not None and wanted != target and not chosen.uses_features:
                remedy = f"set kind: {makers_of(target)}" if target != "labels" else "choose a kind for labels"
                raise ValueError(
                    f"evaluation.sets.{name}.kind: {chosen.kind} needs {IN_WORDS[wanted]}, objective.name: "
                    f"{self.objective.name} learns from {IN_WORDS[target]}; {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _masks_have_a_dense_head(self) -> Experiment:
        dense, name = self.model.head == "dense", self.objective.name
        wanted = self.objective.needs.head
        if self.model.head != wanted:
            hint = ""
            if wanted == "dense" and not self.model.family.can_be_dense:
                others = forms_where(lambda other: other.can_be_dense)
                hint = f", which is for name: {others}, not {self.model.name}"
            raise ValueError(f"objective.name: {name} needs model.head: {wanted}{hint}")
        if not dense:
            return self
        for key in self.data.augmentation.moving_pixels:
            raise ValueError(
                f"data.train_transform.{key} (or data.augreg) changes where things are in an image, but not in its "
                "mask; remove it, or use three_augment or color_jitter, which change colours only"
            )
        transforms = {"data.eval_transform": self.data.eval_transform}
        for key, chosen in self.evaluation.sets.items():
            if chosen.uses_features:
                raise ValueError(
                    f"evaluation.sets.{key}.kind: {chosen.kind} looks at one vector per image, which model.head: dense "
                    "has not; set kind: segmentation"
                )
            if chosen.transform is not None:
                transforms[f"evaluation.sets.{key}.transform"] = chosen.transform
        for key, chosen in transforms.items():
            if chosen.resize != "squash":
                raise ValueError(
                    f"{key}.resize: {chosen.resize} cuts pixels away, which then would not be judged; with masks use "
                    "squash, which sees the whole image"
                )
        if self.data.num_classes > IGNORED_PIXEL:
            raise ValueError(f"data.num_classes: {self.data.num_classes}; masks have at most {IGNORED_PIXEL} classes")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_kept(self) -> Experiment:
        config = self.checkpoint
        if config.keep_every is not None and self.steps(config.keep_every) % max(1, self.steps(config.every)):
            raise ValueError(
                f"checkpoint.keep_every: {config.keep_every} are {self.steps(config.keep_every)} steps, no multiple of "
                f"checkpoint.every, {self.steps(config.every)} steps: there would be no checkpoint to keep"
            )
        if config.keep_best is not None and (self.evaluation.every is None or not self.evaluation.sets):
            raise ValueError("checkpoint.keep_best needs evaluation.every and evaluation.sets: nothing is measured")
        averages = ("", "_ema") if self.optim.ema_decay is not None else ("",)
        possible = [
            f"{name}{average}/{metric}"
            for name, chosen in self.evaluation.sets.items()
            for average in averages
            for metric in chosen.metrics
        ]
        if config.keep_best is not None and config.keep_best not in possible:
            raise ValueError(
                f"checkpoint.keep_best: {config.keep_best} is not measured; possible: {', '.join(possible)}"
            )
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> Experiment:
        mixes = self.data.effective_mixing.active
        for key in () if mixes else self.objective.of_mixed_targets():
            raise ValueError(
                f"objective.{key} acts on mixed targets; without data.mixing (or data.augreg) it would be ignored"
            )
        if mixes and not self.objective.needs.mixes:
            raise ValueError(
                f"data.mixing (or data.augreg) mixes labels, of which objective.name: {self.objective.name} has none; "
                "remove it"
            )
        if mixes and self.cluster.micro_batch_size != "auto" and self.cluster.micro_batch_size % 2:
            raise ValueError(
                f"cluster.micro_batch_size: {self.cluster.micro_batch_size} is odd, but data.mixing mixes pairs of "
                "neighbours; use an even number"
            )
        size = self.model.img_size
        largest, short_side = size if isinstance(size, int) else max(size), self.data.train_transform.short_side
        if short_side is not None and short_side < largest:
            raise ValueError(
                f"data.train_transform.short_side: {short_side} is smaller than the model's {largest} pixels; "
                "the crop would not fit"
            )
        return self

    @model_validator(mode="after")
    def _optimiser_has_what_the_cluster_asks(self) -> Experiment:
        if self.cluster.fused_optimizer is True and not self.optim.has_fused:
            raise ValueError(
                "cluster.fused_optimizer: true needs optim.name: adamw or sgd with momentum_dtype: fp32; use auto"
            )
        return self

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes of the set, unless the objective defines its own."""
        return self.objective.needs.num_outputs or self.data.num_classes

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run: round(epochs × N / B)."""
        return self.steps(self.duration)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps of one epoch, seldom a whole number. The one definition of an epoch.

        An epoch has as many draws as there are samples: those of the set without its drop list, or those of its
        subset; of a mixture, the sum over its sets, whatever their weights.
        """
        return self.data.drawn_samples / self.global_batch_size

    def steps(self, duration: Duration) -> int:
        """``duration`` in optimiser steps of this experiment, rounded to the nearest."""
        return round(self.exact_steps(duration))

    def exact_steps(self, duration: Duration) -> float:
        """``steps`` before rounding."""
        return duration.to_exact_steps(self.data.drawn_samples, self.global_batch_size)

    def images_per_rank(self, world: int) -> int:
        """B / R, the images that each of R ranks takes of a global batch.

        Raises:
            ConfigError: R does not divide B.
        """
        if self.global_batch_size % world:
            raise ConfigError(
                f"global_batch_size: {self.global_batch_size} cannot be divided equally among {world} ranks"
            )
        return self.global_batch_size // world

    def accumulation_steps(self, world: int, micro_batch_size: int) -> int:
        """Micro-batches of b images per optimiser step on each of R ranks: B / (R b).

        Raises:
            ConfigError: R does not divide B, or b does not divide B / R.
        """
        per_rank = self.images_per_rank(world)
        if per_rank % micro_batch_size:
            possible = ", ".join(str(size) for size in range(1, per_rank + 1) if per_rank % size == 0)
            raise ConfigError(
                f"cluster.micro_batch_size: {micro_batch_size} does not divide the {per_rank} images per rank "
                f"({self.global_batch_size} over {world} ranks); possible: {possible}"
            )
        return per_rank // micro_batch_size

    def epochs(self, samples: float) -> float:
        """Converts a number of draws to epochs."""
        return samples / self.data.drawn_samples
