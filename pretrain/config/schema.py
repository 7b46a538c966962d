"""The experiment as typed, strict models. Each field's description is its documentation (and the JSON schema's).

What decides the result stands at the top level; what does not (how many GPUs, how the batch is cut, how the state is
sharded) stands under ``cluster``. A key that is not here is an error; so is a setting that would be ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pretrain.config.duration import Duration

FORMAT_VERSION = 1

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """A section: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


# Which placements each kind of position embedding has; the first is the default. A fixed embedding is the same in every
# layer, so that it has no tables of its own there.
POS_EMBED_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "learned_1d": ("stem", "every_layer", "every_layer_shared"),
    "learned_2d": ("stem", "every_layer", "every_layer_shared"),
    "sincos2d_big_vision": ("stem", "every_layer_shared"),
    "sincos2d_timm": ("stem", "every_layer_shared"),
    "relative_1d": ("every_layer",),
    "relative_bias": ("every_layer", "every_layer_shared"),
    "rope_2d": (),
}


TIMM_MODEL_KEYS = frozenset({"name", "kwargs", "img_size", "head_bias", "head_init", "dropout", "drop_path"})
ENGINE_OWNED_TIMM_REMEDY = {
    "img_size": "use model.img_size",
    "num_classes": "use data.num_classes",
    "drop_rate": "use model.dropout",
    "drop_path_rate": "use model.drop_path",
    "in_chans": "images have three channels",
    "pretrained": "use init.from",
    "pretrained_cfg": "use init.from",
    "checkpoint_path": "use init.from",
    "features_only": "a classifier is trained",
    "scriptable": "it has no use here",
    "exportable": "it has no use here",
}
ENGINE_OWNED_TIMM_KEYS = frozenset(ENGINE_OWNED_TIMM_REMEDY)


class ModelConfig(Strict):
    """The architecture. A Vision Transformer is named by its variant, as in the paper: ``H/14`` is Huge, patch 14."""

    name: str = Field(
        default="vit", description="vit (ours, by variant), or timm/NAME for a classifier of timm, as timm/pvt_v2_b2."
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="timm/… only: passed to timm.create_model as it is, such as window_size."
    )
    variant: str = Field(
        default="",
        description="vit only: size and patch, such as B/16, L/16 or H/14; sizes are the keys of "
        "pretrain/models/variants.py. R50+B/16 is the hybrid: a ResNet-50 of total stride 16 (or 32) makes the feature "
        "map that is cut into patches.",
    )
    img_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=224,
        description="Input resolution in pixels: one number, or [height, width]. The patch size must divide it.",
    )
    embed_dim: PositiveInt | None = Field(default=None, description="Width D; overrides the variant's.")
    depth: PositiveInt | None = Field(default=None, description="Number of blocks; overrides the variant's.")
    num_heads: PositiveInt | None = Field(default=None, description="Attention heads; overrides the variant's.")
    mlp_dim: PositiveInt | None = Field(default=None, description="Hidden width of the MLP; overrides the variant's.")
    class_token: bool = Field(default=True, description="Prepend a learned class token. Needed by pool: token.")
    distilled: bool = Field(
        default=False,
        description="DeiT's distillation token and its own head; the prediction is the mean of both heads' logits.",
    )
    mask_token: bool = Field(
        default=False, description="A learned [mask] embedding, for objective.name: masked_patches."
    )
    num_registers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Learned register tokens after the class token; no pooling sees them."
    )
    layer_scale: PositiveFloat | None = Field(
        default=None, description="Initial value of the factor per channel on each branch (LayerScale); null: none."
    )
    qk_norm: bool = Field(default=False, description="LayerNorm of each head's queries and keys before the product.")
    pool: Literal["token", "norm_avg", "avg_norm", "map"] = Field(
        default="token",
        description="What the head sees: the class token after the final norm; or the mean of the patch tokens, "
        "norm then mean (norm_avg, as big_vision), or mean then norm (avg_norm, as timm's default for avg); or what a "
        "learned query attends to in the patch tokens after the norm, and an MLP (map, as Scaling ViT).",
    )
    pos_embed: Literal[
        "none",
        "learned_1d",
        "learned_2d",
        "sincos2d_big_vision",
        "sincos2d_timm",
        "relative_1d",
        "relative_bias",
        "rope_2d",
    ] = Field(
        default="learned_1d",
        description="Kind of position embedding. Added to tokens: learned_1d (a row per token), learned_2d (half the "
        "channels by row, half by column), sincos2d_big_vision and sincos2d_timm (fixed; their frequencies differ). "
        "In attention: relative_1d (the paper's relative keys), relative_bias (a bias per head and 2-D offset, "
        "timm's), rope_2d (rotary by row and column, timm's).",
    )
    pos_embed_placement: Literal["stem", "every_layer", "every_layer_shared"] | None = Field(
        default=None,
        description="Added kinds: at the stem (the default), before every block by tables of their own, or before "
        "every block by one table (ViT, D.4). Relative kinds: every_layer (the default); relative_bias may be shared.",
    )
    pos_embed_prefix: bool = Field(
        default=True,
        description="learned_1d only: class and register tokens have rows too (the paper); false: patches only "
        "(big_vision, DeiT III; timm's no_embed_class).",
    )
    rope_temperature: PositiveFloat = Field(
        default=10_000.0, description="rope_2d only: base b of the n frequencies b^(-k/n), k = 0 … n - 1."
    )
    rope_grid: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="rope_2d only: positions are scaled as if the grid (h, w) were this one, such as that of the "
        "pretraining when fine-tuning at another resolution; null: positions are patch indices.",
    )
    representation_size: PositiveInt | Literal["width"] | None = Field(
        default=None,
        description="Width of the tanh layer before the head (the paper's pretraining head); null: linear head.",
    )
    head_bias: float = Field(default=0.0, description="Initial bias of the head; -10 for a sigmoid over many classes.")
    head_init: Literal["zero", "normal"] = Field(
        default="zero", description="Initial weights of the head: zero (the paper's code) or normal with std 0.01."
    )
    dropout: Probability = Field(
        default=0.0,
        description="Dropout after every dense layer except qkv and after the position embedding (the paper's).",
    )
    drop_path: Probability = Field(default=0.0, description="Stochastic depth: rate of the last block, linear from 0.")
    gelu: Literal["erf", "tanh"] = Field(default="erf", description="Form of GELU: timm's erf, or flax's tanh.")
    layer_norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of every LayerNorm.")

    @property
    def is_timm(self) -> bool:
        """Whether the model is one of timm's."""
        return self.name.startswith("timm/")

    @model_validator(mode="after")
    def _settings_belong_to_the_name(self) -> ModelConfig:
        if self.name != "vit" and (not self.is_timm or self.name == "timm/"):
            raise ValueError(f"name: unknown architecture {self.name!r}; known are vit and timm/NAME (timm's models)")
        if not self.is_timm:
            if not self.variant:
                raise ValueError("variant: is missing; name a size and a patch, such as B/16 or H/14")
            if self.kwargs:
                raise ValueError("kwargs belong to name: timm/…; with vit they would be ignored")
            return self
        for name, field in type(self).model_fields.items():
            if name not in TIMM_MODEL_KEYS and getattr(self, name) != field.default:
                raise ValueError(f"{name} belongs to name: vit; with {self.name} it would be ignored: see model.kwargs")
        owned = sorted(ENGINE_OWNED_TIMM_KEYS & set(self.kwargs))
        if owned:
            remedy = ENGINE_OWNED_TIMM_REMEDY[owned[0]]
            raise ValueError(f"kwargs.{owned[0]} is set by the engine ({remedy}); remove it here")
        return self

    @model_validator(mode="after")
    def _pool_fits_tokens(self) -> ModelConfig:
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool: token needs class_token: true (or choose pool: norm_avg or avg_norm)")
        if self.distilled and (self.pool != "token" or self.representation_size is not None or self.mask_token):
            raise ValueError("distilled: true needs pool: token, a linear head and no mask_token")
        if self.distilled and self.num_registers:
            raise ValueError("distilled: true has no num_registers; remove one of the two")
        return self

    @model_validator(mode="after")
    def _position_settings_fit(self) -> ModelConfig:
        kind, placement = self.pos_embed, self.pos_embed_placement
        for names, owner in ((("pos_embed_prefix",), "learned_1d"), (("rope_temperature", "rope_grid"), "rope_2d")):
            changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if changed and kind != owner:
                raise ValueError(f"{changed[0]} belongs to pos_embed: {owner}; with {kind} it would be ignored")
        allowed = POS_EMBED_PLACEMENTS[kind]
        if placement is not None and placement not in allowed:
            choices = f"choose {' or '.join(allowed)}" if allowed else "remove it"
            raise ValueError(f"pos_embed_placement: {placement} has no meaning with pos_embed: {kind}; {choices}")
        return self


# (names of objectives, settings that only they have)
OBJECTIVE_SETTINGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("softmax", "distillation"), ("label_smoothing",)),
    (("sigmoid",), ("reduction", "binarise")),
    (("distillation",), ("teacher", "distillation", "alpha", "tau", "kl_reduction")),
    (("masked_patches",), ("corrupted",)),
)
NUM_COLOURS = 512  # classes of masked_patches: 3 bits for each of red, green and blue


class ObjectiveConfig(Strict):
    """What is minimised."""

    name: Literal["softmax", "sigmoid", "distillation", "masked_patches"] = Field(
        default="softmax",
        description="softmax: one label per image. sigmoid: any number of labels per image. distillation: DeiT's, with "
        "a teacher. masked_patches: the mean colours of corrupted patches, without labels (ViT, B.1.2).",
    )
    label_smoothing: Probability = Field(
        default=0.0, description="Share of the target spread over all classes (softmax and distillation)."
    )
    reduction: Literal["sum_classes", "mean"] = Field(
        default="sum_classes",
        description="sigmoid only: sum over the classes and mean over the batch (Google), or over both (DeiT III).",
    )
    binarise: bool = Field(
        default=False,
        description="sigmoid only: after mixing, each class with any share of the target counts as 1 (DeiT III).",
    )
    teacher: str | None = Field(
        default=None, description="distillation only: weights of the teacher, as init.from: a run folder or a file."
    )
    distillation: Literal["hard", "soft"] = Field(
        default="hard", description="distillation only: the teacher's best class is a label, or its distribution is."
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="distillation only: weight of the teacher's term; the labels' term has the rest."
    )
    tau: PositiveFloat = Field(default=1.0, description="soft distillation only: temperature of both distributions.")
    kl_reduction: Literal["mean", "sum_classes"] = Field(
        default="mean",
        description="soft distillation only: the divergence's mean over batch and classes (DeiT's code), or its sum "
        "over the classes and mean over the batch (DeiT's paper): as many times more as there are classes.",
    )
    corrupted: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="masked_patches only: share of the patches that are corrupted and predicted."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ObjectiveConfig:
        for owners, names in OBJECTIVE_SETTINGS:
            ignored = [name for name in names if name in self.model_fields_set and self.name not in owners]
            ignored = [name for name in ignored if name != "label_smoothing" or self.label_smoothing]
            if ignored:
                owner = " or ".join(owners)
                raise ValueError(f"{ignored[0]} belongs to name: {owner}; with {self.name} it would be ignored")
        for name in ("tau", "kl_reduction"):
            if name in self.model_fields_set and self.distillation == "hard":
                raise ValueError(f"{name} belongs to distillation: soft; with hard it would be ignored")
        if self.name == "distillation" and self.teacher is None:
            raise ValueError("teacher: is missing; name the teacher's run folder, checkpoint or weights file")
        return self


ResizeFilter = Literal["bilinear", "bilinear_aa", "bicubic_aa", "area"]


class TrainTransformConfig(Strict):
    """How a training image is made from its bytes. Random numbers are functions of (seed, epoch, sample)."""

    crop: Literal["inception", "resize"] = Field(
        default="inception",
        description="inception: a random area and ratio, resized; resize: the whole image, squashed.",
    )
    min_area: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.05, description="Smallest share of the area of a crop."
    )
    ratio: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 4 / 3), description="Range of the crop's width over its height."
    )
    hflip: Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> TrainTransformConfig:
        unused = sorted({"min_area", "ratio"} & self.model_fields_set)
        if self.crop == "resize" and unused:
            raise ValueError(f"{', '.join(unused)} belong to crop: inception; with crop: resize they would be ignored")
        return self


class EvalTransformConfig(Strict):
    """How an evaluation image is made from its bytes."""

    resize: Literal["short_side", "squash"] = Field(
        default="short_side",
        description="short_side: keep the aspect, then crop the centre; squash: to the size itself.",
    )
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.875, description="short_side only: model size over the resized short side (0.875 is 256 → 224)."
    )
    resize_filter: ResizeFilter = Field(default="bilinear_aa", description="Interpolation of the resize.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> EvalTransformConfig:
        if self.resize == "squash" and "crop_fraction" in self.model_fields_set:
            raise ValueError("crop_fraction belongs to resize: short_side; with squash it would be ignored")
        return self


class DataConfig(Strict):
    """The training set and how it is streamed."""

    shards: str = Field(description="Folder with one split's WebDataset tars and their index (made by pipelines pack).")
    num_samples: PositiveInt = Field(description="Samples that the set is expected to have; checked against the index.")
    num_classes: PositiveInt = Field(description="Classes that the set is expected to have: the width of the head.")
    lanes: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Equal parts L into which an epoch is cut; part of the experiment, since it decides the order. "
        "auto: the largest power of two ≤ 512 with an even global_batch_size / L, ≥ 8 where the batch allows.",
    )
    shuffle_window: PositiveInt = Field(
        default=8192, description="Consecutive positions of a lane that are shuffled among each other."
    )
    train_transform: TrainTransformConfig = Field(default_factory=TrainTransformConfig)
    eval_transform: EvalTransformConfig = Field(default_factory=EvalTransformConfig)
    mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="Subtracted from pixels in [0, 1].")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 0.5, 0.5), description="Divides after that."
    )
    max_bad_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="The run stops when more than this share of the samples could not be read or decoded."
    )


class ScheduleConfig(Strict):
    """The learning rate as a function of the step."""

    name: Literal["linear", "cosine", "polynomial", "rsqrt", "constant"] = Field(
        default="cosine", description="Decay after the warmup."
    )
    warmup: Duration = Field(default=Duration(0, "steps"), description="Linear from 0 to lr.")
    cooldown: Duration = Field(default=Duration(0, "steps"), description="Linear to 0 at the end, over any decay.")
    end_lr: NonNegativeFloat = Field(default=0.0, description="linear, cosine, polynomial: rate at the last step.")
    power: PositiveFloat = Field(default=2.0, description="polynomial: exponent of what is left of the run.")
    timescale: Duration = Field(
        default=Duration(10_000, "steps"),
        description="rsqrt: lr / sqrt(1 + (steps since the warmup + shift) / timescale).",
    )
    shift: Duration = Field(default=Duration(0, "steps"), description="rsqrt: see timescale.")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ScheduleConfig:
        uses = {"linear": {"end_lr"}, "cosine": {"end_lr"}, "polynomial": {"end_lr", "power"}}
        uses |= {"rsqrt": {"timescale", "shift"}, "constant": set()}
        ignored = sorted({"end_lr", "power", "timescale", "shift"} & self.model_fields_set - uses[self.name])
        if ignored:
            raise ValueError(f"{', '.join(ignored)} would be ignored by name: {self.name}; remove it")
        return self


class OptimConfig(Strict):
    """The optimiser. Decay applies to kernels only: no bias, norm, class token or position embedding decays."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw (decay times lr, as in torch) or SGD.")
    lr: PositiveFloat = Field(description="Peak learning rate; the schedule scales it.")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="In the AdamW convention (multiplied by the lr).")
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.999), description="adamw only.")
    eps: PositiveFloat = Field(default=1e-8, description="adamw only.")
    momentum: Probability = Field(default=0.9, description="sgd only.")
    clip_grad: PositiveFloat | None = Field(
        default=None, description="Largest global norm of the gradient; null: no clipping."
    )
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Polyak averaging: what an update keeps of the average (0.9999); null: no average."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> OptimConfig:
        foreign = {"adamw": {"momentum"}, "sgd": {"betas", "eps"}}[self.name] & self.model_fields_set
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} would be ignored by name: {self.name}; remove it")
        return self


class EvaluationSetConfig(Strict):
    """A labelled set on which accuracy is measured; every image counts once."""

    shards: str = Field(description="Folder with one split's tars and their index.")
    num_samples: PositiveInt = Field(description="Samples that the set is expected to have.")


class EvaluationConfig(Strict):
    """When and on what accuracy is measured. The end of the run always evaluates."""

    every: Duration | None = Field(default=None, description="How often during training; null: at the end only.")
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict, description="Name → set.")
    micro_batch_size: PositiveInt = Field(default=64, description="Images per device in one forward pass.")


class CheckpointConfig(Strict):
    """When the state is saved, and how much of it stays."""

    every: Duration = Field(default=Duration(1000, "steps"), description="How often; the end of the run always saves.")
    keep_last: PositiveInt = Field(default=2, description="Complete checkpoints that are kept, the newest first.")


class ResumeConfig(Strict):
    """How a run goes on."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Another run folder or one checkpoint: a fork with optimiser and stream.",
    )
    allow_changes: tuple[str, ...] = Field(
        default=(),
        description="Keys that may differ from the saved run's, such as optim.lr; any other change is refused.",
    )


class InitConfig(Strict):
    """Initial weights from elsewhere (a new optimiser, step 0)."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Run folder, checkpoint or safetensors file; or weights of another program: a folder of timm's or "
        "Hugging Face's, Google's .npz, torchvision's safetensors.",
    )
    head: Literal["auto", "keep", "replace"] = Field(
        default="auto",
        description="replace: a new head, as model.head_init says; auto: replace in pipelines/finetune.py, else keep.",
    )
    weights: Literal["raw", "ema"] = Field(
        default="raw", description="Which weights of a run or checkpoint: the trained ones, or their Polyak average."
    )
    pos_embed_filter: Literal["bilinear_corners", "bicubic", "bicubic_aa"] = Field(
        default="bilinear_corners",
        description="How the position embedding is resized: the paper's code, DeiT's bicubic, timm's antialiased one.",
    )


class GuardConfig(Strict):
    """What happens when a loss or a gradient is not finite: the update is skipped on all ranks and counted."""

    max_consecutive_skips: PositiveInt = Field(default=20, description="So many skipped updates in a row end the run.")


class TelemetryConfig(Strict):
    """What is written about the run while it goes."""

    log_every: PositiveInt = Field(default=10, description="Steps between two lines of metrics.jsonl.")
    tensorboard: bool = Field(default=True, description="Also write TensorBoard event files.")


class PhaseLimitsConfig(Strict):
    """Seconds that a rank may stay in one phase before the job is ended and the rank that hangs is named."""

    start: PositiveFloat = Field(default=1800, description="Building model, stream and engine.")
    load: PositiveFloat = Field(default=1800, description="Reading and verifying a checkpoint.")
    data: PositiveFloat = Field(default=900, description="Waiting for a micro-batch, the first one included.")
    step: PositiveFloat = Field(default=900, description="Forward, backward and update of one micro-batch.")
    save: PositiveFloat = Field(default=1800, description="Writing a checkpoint.")
    evaluate: PositiveFloat = Field(default=7200, description="All evaluation sets.")


class ClusterConfig(Strict):
    """What does not decide the result: devices, how the batch is cut, how the state is sharded, how data is read."""

    backend: Literal["auto", "deepspeed", "accelerate"] = Field(
        default="auto", description="auto: deepspeed in pretrain/run.py, accelerate (DDP) in pipelines/finetune.py."
    )
    num_devices: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Ranks that the run expects; auto: as many as the launcher starts (1 in --check)."
    )
    device_memory_gib: PositiveFloat | Literal["auto"] = Field(
        default="auto", description="Memory of one device for --check and micro_batch_size: auto; auto: detected."
    )
    micro_batch_size: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Images per device in one forward and backward pass; accumulation follows from it."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1, description="ZeRO: 1 shards optimiser state, 2 gradients, 3 weights."
    )
    activation_checkpointing: Annotated[str, Field(pattern=r"^(none|full|selective|every_([2-9]|[1-9][0-9]+))$")] = (
        Field(
            default="none",
            description="What the backward pass computes again. full: all of a block but its input; every_2, every_3, "
            "…: that for each second, third, … block; selective: a block's norms and activations, keeping what matrix "
            "products and attention gave. The same losses to the bit, less memory, more time.",
        )
    )
    compile: bool = Field(
        default=False,
        description="Compile the blocks one by one with static shapes (torch.compile). ZeRO stages 0 to 2.",
    )
    num_workers: Annotated[int, Field(ge=0)] = Field(
        default=4, description="Data processes per rank; 0: in the rank itself."
    )
    prefetch_factor: PositiveInt = Field(default=2, description="Micro-batches that each data process prepares ahead.")
    collective_timeout_s: PositiveInt = Field(default=10_800, description="After this a collective fails, in seconds.")
    phase_limits_s: PhaseLimitsConfig = Field(
        default_factory=PhaseLimitsConfig, description="When a rank counts as hung, in seconds."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="Passed to DeepSpeed as it is; keys that the engine owns are refused."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ClusterConfig:
        if self.backend == "accelerate" and self.deepspeed:
            raise ValueError("deepspeed: would be ignored by backend: accelerate; remove it or choose deepspeed")
        if self.backend == "accelerate" and "zero_stage" in self.model_fields_set and self.zero_stage:
            raise ValueError("zero_stage: needs backend: deepspeed; accelerate trains with DDP (stage 0)")
        if self.compile and self.zero_stage == 3 and self.backend != "accelerate":
            raise ValueError(
                "compile: true does not go with zero_stage: 3, whose hooks gather each layer's weights in the middle "
                "of a block; use zero_stage: 1 or 2, or compile: false"
            )
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "compile: true does not go with activation_checkpointing: selective, for a compiled block hides the "
                "operations to keep; use none, full or every_2 (the compiler chooses by itself what a block keeps)"
            )
        if self.num_workers == 0 and "prefetch_factor" in self.model_fields_set:
            raise ValueError("prefetch_factor would be ignored with num_workers: 0")
        owned = sorted(ENGINE_OWNED_DEEPSPEED_KEYS & set(self.deepspeed))
        if owned:
            raise ValueError(
                f"deepspeed.{owned[0]} is set by the engine ({ENGINE_OWNED_DEEPSPEED_REMEDY[owned[0]]}); remove it here"
            )
        longest = max(self.phase_limits_s.model_dump().values())
        if longest >= self.collective_timeout_s:
            raise ValueError(
                f"phase_limits_s: its longest limit, {longest:.0f}, must lie below collective_timeout_s "
                f"({self.collective_timeout_s}), or a collective fails before the rank that hangs is named"
            )
        return self


ENGINE_OWNED_DEEPSPEED_REMEDY = {
    "train_batch_size": "use global_batch_size",
    "train_micro_batch_size_per_gpu": "use cluster.micro_batch_size",
    "gradient_accumulation_steps": "it follows from global_batch_size and cluster.micro_batch_size",
    "gradient_clipping": "use optim.clip_grad",
    "optimizer": "use optim",
    "scheduler": "use optim.schedule",
    "checkpoint": "use checkpoint",
    "fp16": "use precision",
    "bf16": "use precision",
    "torch_autocast": "use precision",
    "amp": "use precision",
    "activation_checkpointing": "use cluster.activation_checkpointing",
}
ENGINE_OWNED_DEEPSPEED_KEYS = frozenset(ENGINE_OWNED_DEEPSPEED_REMEDY)


class Experiment(Strict):
    """One run, pretraining or fine-tuning, from data to result."""

    version: Literal[1] = Field(default=FORMAT_VERSION, description="Version of this format.")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="The run folder is output_dir/name."
    )
    output_dir: str = Field(default="runs", description="Where run folders lie; must be shared by all ranks.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Decides initial weights, order, augmentation, dropout."
    )
    duration: Duration = Field(description="Length of the training, such as '90 epochs' or '20_000 steps'.")
    global_batch_size: PositiveInt = Field(description="Images per optimiser step over all devices.")
    precision: Literal["fp32", "bf16", "autocast"] = Field(
        default="bf16",
        description="bf16: weights in bfloat16 with fp32 master weights (ZeRO ≥ 1); autocast: fp32 weights, "
        "matmuls in bfloat16; fp32. Loss, softmax, norms and head are fp32 in each.",
    )
    model: ModelConfig
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    data: DataConfig
    optim: OptimConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    resume: ResumeConfig = Field(default_factory=ResumeConfig)
    init: InitConfig = Field(default_factory=InitConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)

    @model_validator(mode="after")
    def _objective_fits_model(self) -> Experiment:
        masked = self.objective.name == "masked_patches"
        if masked and self.model.is_timm:
            raise ValueError("objective.name: masked_patches needs model.name: vit")
        if masked != self.model.mask_token:
            raise ValueError(
                "objective.name: masked_patches needs model.mask_token: true"
                if masked
                else "model.mask_token belongs to objective.name: masked_patches; otherwise it would be ignored"
            )
        if masked and self.evaluation.sets:
            raise ValueError("evaluation.sets: a model that predicts colours has no accuracy; remove them")
        if self.model.is_timm and self.cluster.activation_checkpointing not in ("none", "full"):
            policy = self.cluster.activation_checkpointing
            raise ValueError(f"cluster.activation_checkpointing: {policy} needs model.name: vit; use none or full")
        if self.model.is_timm and self.cluster.compile:
            raise ValueError("cluster.compile: true needs model.name: vit, whose blocks are compiled one by one")
        return self

    @property
    def num_outputs(self) -> int:
        """Width of the head: the classes of the set, or the colours that masked_patches predicts."""
        return NUM_COLOURS if self.objective.name == "masked_patches" else self.data.num_classes

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run: round(epochs × N / B)."""
        return self.steps(self.duration)

    def steps(self, duration: Duration) -> int:
        """``duration`` in optimiser steps of this experiment."""
        return duration.to_steps(self.data.num_samples, self.global_batch_size)
