"""The whole experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pretrain.config.batches import Batches
from pretrain.config.duration import Duration
from pretrain.config.families import forms_where
from pretrain.config.image_sizes import ImageSizes, Tiling
from pretrain.config.schema.base import Strict, names_of
from pretrain.config.schema.batch_unit import batch_unit_problems
from pretrain.config.schema.cluster import AutoClusterConfig, Cluster
from pretrain.config.schema.data import IGNORED_PIXEL, IN_WORDS, DataConfig
from pretrain.config.schema.evaluation import EvaluationConfig
from pretrain.config.schema.jobs import SweepConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.native import native_problems
from pretrain.config.schema.objective import Objective, SoftmaxConfig, makers_of
from pretrain.config.schema.optim.choice import Optim
from pretrain.config.schema.run import CheckpointConfig, GuardConfig, InitConfig, ResumeConfig, TelemetryConfig
from pretrain.config.schema.sizes import batches_of, sizes_of
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
    batch_unit: PositiveInt | None = Field(
        default=None,
        description="Steps of smaller images, larger patches or shorter sequences have more images: as many times this "
        "number as fit into the patches of global_batch_size images of the largest size (batches of constant tokens). "
        "It divides global_batch_size. null: every step has global_batch_size images.",
    )
    precision: Literal["fp32", "bf16", "autocast"] = Field(
        default="bf16",
        description="bf16: weights in bfloat16 with fp32 master weights; autocast: fp32 weights, "
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
    cluster: Cluster = Field(
        default_factory=AutoClusterConfig,
        description="Settings that do not decide the result: devices, micro-batch size, sharding and data loading.",
    )
    sweep: SweepConfig | None = Field(default=None, description="Read by pipelines sweep only; single runs ignore it.")

    @property
    def mirror_address(self) -> str | None:
        """The folder in an object store with copies of this run's checkpoints; None: they are not copied."""
        mirror = self.checkpoint.mirror
        return None if mirror is None else f"{mirror}/{self.name}/checkpoints"

    @field_validator("output_dir")
    @classmethod
    def _on_a_file_system(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"{value} is not a folder; run folders are on a file system that all ranks share. To copy the "
                "checkpoints to an object store, keep output_dir: runs and set checkpoint.mirror: s3://BUCKET/PREFIX"
            )
        return value

    @model_validator(mode="after")
    def _batch_unit_divides(self) -> Experiment:
        unit, largest = self.batch_unit, self.global_batch_size
        if unit is not None and (unit % 2 or largest % unit):
            possible = [str(size) for size in range(2, largest + 1, 2) if largest % size == 0]
            raise ValueError(
                f"batch_unit: {unit} is not an even divisor of global_batch_size ({largest}); possible: "
                f"{', '.join(possible) or 'none, since it is odd'}"
            )
        return self

    @model_validator(mode="after")
    def _lengths_can_be_counted(self) -> Experiment:
        lengths = {
            "duration": self.duration,
            "checkpoint.every": self.checkpoint.every.training,
            "checkpoint.keep_every": self.checkpoint.keep_every,
            "checkpoint.fast.every": None if self.checkpoint.fast is None else self.checkpoint.fast.every.training,
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
    def _class_weights_fit(self) -> Experiment:
        key, weights = self.objective.class_weighting
        if isinstance(weights, tuple) and len(weights) != self.data.num_classes:
            raise ValueError(
                f"objective.{key}: {len(weights)} weights for {self.data.num_classes} classes; give one for each, or "
                "balanced"
            )
        if weights == "balanced" and not self.data.draws_each_once:
            raise ValueError(
                f"objective.{key}: balanced counts the images of one complete set, not of a mixture, a subset or a "
                "set with a drop list, nor of classes drawn in other shares by data.sampling; give a list of weights"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits_model(self) -> Experiment:
        part, name = self.objective.needs.part, self.objective.name
        family = self.model.family
        if part is not None and not family.can_mask:
            others = forms_where(lambda other: other.can_mask)
            raise ValueError(f"objective.name: {name} needs model.name: {others}")
        for key, value in (("mask_token", "true"), ("decoder", "{}")):
            has_part = bool(getattr(self.model, key))
            if key == part and not has_part:
                raise ValueError(f"objective.name: {name} needs model.{key}: {value}")
            if key != part and has_part:
                owners = names_of(Objective, lambda model, key=key: model.needs.part == key)
                raise ValueError(
                    f"model.{key} belongs to objective.name: {' or '.join(owners)}; otherwise it would be ignored"
                )
        if part == "decoder" and not self.model.patch_drop:
            raise ValueError(
                f"objective.name: {name} reconstructs the patches that model.patch_drop leaves out, which is 0; set "
                "model.patch_drop: 0.75 (the paper's)"
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
    def _head_fits_the_objective(self) -> Experiment:
        name = self.objective.name
        wanted = self.objective.needs.head
        if self.model.head != wanted:
            hint = ""
            if wanted != "pooled" and not self.model.family.can_be_dense:
                others = forms_where(lambda other: other.can_be_dense)
                hint = f", which is for name: {others}, not {self.model.name}"
            raise ValueError(f"objective.name: {name} needs model.head: {wanted}{hint}")
        if self.objective.needs.nonzero_head and self.model.head_init == "zero":
            raise ValueError(
                f"model.head_init: zero; objective.name: {name} compares the head's outputs with a teacher's features, "
                "and the outputs of a head of zeros have no direction; set model.head_init: normal"
            )
        for key, chosen in self.evaluation.sets.items():
            if wanted in ("dense", "patches") and chosen.uses_features:
                remedy = "set kind: segmentation" if wanted == "dense" else "remove it"
                raise ValueError(
                    f"evaluation.sets.{key}.kind: {chosen.kind} looks at one vector per image, which model.head: "
                    f"{wanted} has not; {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _masks_keep_their_places(self) -> Experiment:
        if self.objective.needs.target != "mask":
            return self
        for key in self.data.augmentation.moving_pixels:
            raise ValueError(
                f"data.train_transform.{key} (or data.augreg) changes where things are in an image, but not in its "
                "mask; remove it, or use three_augment or color_jitter, which change colours only"
            )
        transforms = {"data.eval_transform": self.data.eval_transform}
        for key, chosen in self.evaluation.sets.items():
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
    def _native_images_fit(self) -> Experiment:
        used = {f"evaluation.sets.{key}.transform": chosen for key, chosen in self.evaluation.sets.items()}
        transforms = {key: chosen.transform_or(self.data.eval_transform) for key, chosen in used.items()}
        transforms["data.eval_transform"] = self.data.eval_transform
        for problem in native_problems(self.data, self.model, self.objective, transforms):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _checkpoints_are_kept(self) -> Experiment:
        config = self.checkpoint
        if config.keep_every is not None:
            kept, every = self.steps(config.keep_every), self.save_every
            if every is None:
                raise ValueError(
                    f"checkpoint.keep_every: {config.keep_every} needs checkpoints at fixed steps, but "
                    f"checkpoint.every: {config.every} is a time alone; write '{config.keep_every} or {config.every}'"
                )
            if kept % every:
                raise ValueError(
                    f"checkpoint.keep_every: {config.keep_every} are {kept} steps, no multiple of checkpoint.every, "
                    f"{every} steps: there would be no checkpoint to keep"
                )
        if config.keep_best is not None and (self.evaluation.every is None or not self.evaluation.sets):
            raise ValueError("checkpoint.keep_best needs evaluation.every and evaluation.sets: nothing is measured")
        possible = [
            f"{name}{average}/{metric}"
            for name, chosen in self.evaluation.sets.items()
            for average in self.optim.evaluated
            for metric in chosen.metrics
        ]
        if config.keep_best is not None and config.keep_best not in possible:
            raise ValueError(
                f"checkpoint.keep_best: {config.keep_best} is not measured; possible: {', '.join(possible)}"
            )
        return self

    @model_validator(mode="after")
    def _fast_checkpoints_are_frequent(self) -> Experiment:
        every, fast, fast_steps = self.checkpoint.every, self.checkpoint.fast, self.fast_save_every
        if fast is None:
            return self
        by_steps = None not in (fast_steps, self.save_every) and (fast_steps or 0) >= (self.save_every or 0)
        by_time = None not in (fast.every.seconds, every.seconds) and (fast.every.seconds or 0) >= (every.seconds or 0)
        if by_steps or by_time:
            raise ValueError(
                f"checkpoint.fast.every: {fast.every} is not shorter than checkpoint.every: {every}, so it would save "
                "nothing; make it shorter, or remove checkpoint.fast"
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
        largest, short_side = max(self.model.size), self.data.train_transform.short_side
        if short_side is not None and short_side < largest:
            raise ValueError(
                f"data.train_transform.short_side: {short_side} is smaller than the model's {largest} pixels; "
                "the crop would not fit"
            )
        return self

    @model_validator(mode="after")
    def _resolution_fits(self) -> Experiment:
        if not self.changes_size:
            return self
        if self.data.train_transform.sequence_lengths:
            return self._lengths_alone_change()
        key = "data.resolution" if self.data.resolution else "model.patch_sizes"
        if not self.objective.needs.takes_any_size:
            raise ValueError(
                f"{key}: objective.name: {self.objective.name} needs images of one grid of patches; remove it, or use "
                "an objective of labels or vectors without a teacher"
            )
        if not self.data.resolution:
            return self
        if self.model.size[0] != self.model.size[1]:
            raise ValueError(
                f"data.resolution: its sides are those of squares, but model.img_size is {list(self.model.size)}; use "
                "a square one"
            )
        if self.data.train_transform.short_side is not None:
            raise ValueError(
                f"data.resolution: data.train_transform.short_side: {self.data.train_transform.short_side} is in "
                "pixels, so a smaller image would show a smaller part of the photo; use crop: inception or simple"
            )
        _ = self.image_sizes
        return self

    @model_validator(mode="after")
    def _batch_unit_fits(self) -> Experiment:
        for problem in () if self.batch_unit is None else batch_unit_problems(self):
            raise ValueError(f"batch_unit: {self.batch_unit} {problem}")
        return self

    def _lengths_alone_change(self) -> Experiment:
        for key, given in (("data.resolution", self.data.resolution), ("model.patch_sizes", self.model.patch_sizes)):
            if given:
                raise ValueError(
                    f"{key}: with data.train_transform.crop: native every image has a size of its own; remove one, or "
                    "give a list of lengths as data.train_transform.max_tokens"
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
    def trained_model(self) -> ModelConfig:
        """The model with the size of its training images, which decides the cost of a step.

        A padded sequence of N patches costs as much as one row of N patches.
        """
        if not self.data.train_transform.sequence_lengths:
            return self.model
        return self.model.model_copy(update={"img_size": self.image_sizes.largest})

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes of the set, unless the objective defines its own; 0: no head."""
        own = self.objective.num_outputs
        return self.data.num_classes if own is None else own

    @property
    def head_in_words(self) -> str:
        """The part of the model after its body, such as "1,000 classes"."""
        return f"{self.num_outputs:,} {self.objective.needs.outputs}" if self.num_outputs else "decoder"

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run: round(epochs × N / B)."""
        return self.steps(self.duration)

    @property
    def image_sizes(self) -> ImageSizes:
        """The size of the training images and patches at each step; ``model.img_size`` where nothing else is set.

        Images at their own aspect ratio are strips of N patches (see ``data.images.native``).
        """
        return sizes_of(self)

    @property
    def batches(self) -> Batches:
        """The number of images of each step."""
        return batches_of(self, sizes_of(self))

    def samples_until(self, step: int) -> int:
        """Samples that are drawn before a step."""
        return self.batches.before(step)

    @property
    def mean_batch_size(self) -> float:
        """Images per step, on average over the run."""
        return self.samples_until(self.num_steps) / max(1, self.num_steps)

    @property
    def changes_size(self) -> bool:
        """Whether training images, or their patches, may have another size than the model's."""
        return bool(
            self.data.resolution or self.model.patch_sizes or len(self.data.train_transform.sequence_lengths) > 1
        )

    def metrics_of(self, tiling: Tiling) -> dict[str, int]:
        """The metrics of a step with such images: what changes of their size."""
        (height, width), patch = tiling
        if len(self.data.train_transform.sequence_lengths) > 1:
            return {"sequence_length": width // height}
        sides = {"image_size": height} if self.data.resolution else {}
        return sides if patch is None else sides | {"patch_size": patch}

    def at_tiling(self, tiling: Tiling) -> Experiment:
        """This experiment with images and patches of one size throughout."""
        data = self.data
        if data.train_transform.sequence_lengths:
            native = data.train_transform.model_copy(update={"max_tokens": tiling.size[1] // tiling.size[0]})
            return self.model_copy(update={"data": data.model_copy(update={"train_transform": native})})
        model = self.model.at_tiling(tiling)
        return self.model_copy(update={"model": model, "data": data.model_copy(update={"resolution": ()})})

    @property
    def save_every(self) -> int | None:
        """Steps between checkpoints that are due by training; None: the time alone decides."""
        every = self.checkpoint.every.training
        return None if every is None else max(1, self.steps(every))

    @property
    def fast_save_every(self) -> int | None:
        """Steps between fast checkpoints; None: there are none, or the time alone decides."""
        fast = self.checkpoint.fast
        return None if fast is None or fast.every.training is None else max(1, self.steps(fast.every.training))

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
        if duration.unit == "steps" or self.batch_unit is None:
            return duration.to_exact_steps(self.data.drawn_samples, self.global_batch_size)
        return self.batches.exact_step(duration.to_exact_steps(self.data.drawn_samples, 1))

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
        accumulation = per_rank // micro_batch_size
        if not self.batches.can_be_shared(world, accumulation):
            possible = [
                str(size)
                for size in range(1, per_rank + 1)
                if per_rank % size == 0 and self.batches.can_be_shared(world, per_rank // size)
            ]
            raise ConfigError(
                f"cluster.micro_batch_size: {micro_batch_size} does not divide the larger batches that batch_unit: "
                f"{self.batch_unit} makes of smaller images: {world} ranks cannot process them in {accumulation} "
                f"passes; possible: {', '.join(possible) or 'none; make batch_unit larger'}"
            )
        return accumulation

    def epochs(self, samples: float) -> float:
        """Converts a number of draws to epochs."""
        return samples / self.data.drawn_samples
