"""The course of a run: checkpoints, resume, initial weights, the guard against non-finite losses, and logging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.config.duration import Duration, Interval
from pretrain.config.object_stores import folder_address
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict


class FastCheckpointConfig(Strict):
    """Frequent checkpoints on the nodes themselves; a restart uses them if all parts of one are intact."""

    every: Interval = Field(
        default=Interval(Duration(20, "steps")), description="Interval between two; shorter than checkpoint.every."
    )
    folder: str = Field(
        default="/dev/shm",
        description="Existing folder in each node's memory or on its own disk. It needs twice the node's part of a "
        "checkpoint, and twice the neighbour's (see plan).",
    )
    peers: Literal[0, 1] = Field(
        default=1,
        description="1: also copy each node's part to the next node, so that the loss of one node loses nothing; "
        "0: no copy, which only survives the death of processes.",
    )

    @field_validator("folder")
    @classmethod
    def _is_absolute(cls, folder: str) -> str:
        if not folder.startswith("/"):
            raise ValueError(
                f"{folder!r} is not an absolute path; each node resolves it, so write one such as /dev/shm"
            )
        return folder


class CheckpointConfig(Strict):
    """When checkpoints are saved and which are kept."""

    every: Interval = Field(
        default=Interval(Duration(1000, "steps"), 900),
        description="Interval between checkpoints; the end of the run always saves.",
    )
    asynchronous: bool = Field(
        default=True,
        description="Copy the state to host memory between steps and write it while training continues; false: block "
        "until it is on disk. Both need host memory for a rank's part of the state.",
    )
    keep_last: PositiveInt = Field(default=2, description="Number of newest complete checkpoints to keep.")
    keep_every: Duration | None = Field(
        default=None,
        description="Also keep checkpoints at multiples of this; must be a multiple of the duration in "
        "every. null: none.",
    )
    keep_best: str | None = Field(
        default=None,
        description="Also keep the best checkpoint by this evaluation metric, such as val/top1 (loss, mae, rmse: "
        "lowest, else highest); a new best evaluation saves a checkpoint. null: none.",
    )
    mirror: str | None = Field(
        default=None,
        description="Also copy each checkpoint to MIRROR/NAME/checkpoints in an object store: s3://BUCKET/PREFIX, "
        "gs://… or az://…. A resume takes the newest checkpoint of run folder and mirror. null: no copies.",
    )
    on_error: Literal["stop", "continue"] = Field(
        default="stop",
        description="Whether a checkpoint that cannot be written (for example on a full disk) stops the run. Older "
        "checkpoints are kept; continue tries again when the next checkpoint is due.",
    )
    fast: FastCheckpointConfig | None = Field(
        default=None, description="Also keep frequent checkpoints on the nodes themselves. null: do not."
    )

    @field_validator("mirror")
    @classmethod
    def _in_an_object_store(cls, value: str | None) -> str | None:
        return None if value is None else folder_address(value)


class ResumeConfig(Strict):
    """How a run continues."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Another run folder or checkpoint to fork from, with optimiser state and data stream.",
    )
    allow_changes: tuple[str, ...] = Field(
        default=(),
        description="Keys that may differ from the saved run, such as optim.lr; other changes are refused.",
    )
    cooldown: Duration | None = Field(
        default=None,
        description="Final fork: decay the learning rate of a constant or rsqrt run linearly to 0 over this length "
        "after the checkpoint in from. duration and optim.schedule.cooldown are derived from it.",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ResumeConfig:
        if self.cooldown is not None and self.from_ is None:
            raise ValueError("cooldown begins a fork; set from, the run or checkpoint whose training ends in it")
        return self


Head = Literal["keep", "replace", "remap"]


class InitConfig(Strict):
    """Initial weights from another run or program (with a new optimiser, at step 0)."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Run folder, checkpoint or safetensors file; or weights of another program: a timm or Hugging Face "
        "folder, Google's .npz, torchvision's safetensors.",
    )
    head: Literal["auto", "keep", "replace", "remap"] = Field(
        default="auto",
        description="keep: the head of the weights, for the same classes; remap: the rows of the classes in common, "
        "other classes are new; replace: a new head (see model.head_init); auto: replace in pipelines/finetune.py, "
        "else keep.",
    )
    weights: Literal["raw", "ema"] = Field(
        default="raw", description="Use the raw or the EMA weights of a run or checkpoint."
    )
    pos_embed_filter: Literal["bilinear_corners", "bicubic", "bicubic_aa"] = Field(
        default="bilinear_corners",
        description="Resizing of the position embedding: the paper's code, DeiT's bicubic or timm's antialiased one.",
    )


class GuardConfig(Strict):
    """Handling of non-finite losses and gradients: the update is skipped on all ranks and counted."""

    max_consecutive_skips: PositiveInt = Field(
        default=20,
        description="After this many skipped updates in a row, the run rolls back to the last good checkpoint and "
        "skips the samples drawn since then.",
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        default=2, description="Maximum number of rollbacks in a run; the next one ends it."
    )


class WandbConfig(Strict):
    """Weights & Biases; needs the package ``wandb`` (``pip install 'vit-pretrain[wandb]'``)."""

    project: str = Field(description="Project that the run appears in.")
    entity: str | None = Field(default=None, description="User or team; null: the default of the account.")
    mode: Literal["online", "offline"] = Field(
        default="online",
        description="offline: write files to the run folder without network; `wandb sync` uploads them.",
    )
    tags: tuple[str, ...] = Field(default=(), description="Tags of the run.")


class TelemetryConfig(Strict):
    """Metrics written during the run."""

    log_every: PositiveInt = Field(default=10, description="Steps between lines of metrics.jsonl.")
    tensorboard: bool = Field(default=True, description="Also write TensorBoard event files.")
    wandb: WandbConfig | None = Field(default=None, description="Also report to Weights & Biases; null: do not.")
    peak_tflops: PositiveFloat | None = Field(
        default=None,
        description="Peak TFLOP/s of one device in this precision, for MFU; null: looked up by device name "
        "(configs/devices.yaml).",
    )
