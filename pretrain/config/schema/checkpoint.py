"""Checkpointing, resuming and initial weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import PositiveInt, Strict


class CheckpointConfig(Strict):
    """When checkpoints are saved and which are kept."""

    every: Duration = Field(
        default=Duration(1000, "steps"), description="Interval between checkpoints; the end of the run always saves."
    )
    asynchronous: bool = Field(
        default=True,
        description="Copy the state to host memory between steps and write it while training continues; false: block "
        "until it is on disk. Both need host memory for a rank's part of the state.",
    )
    keep_last: PositiveInt = Field(default=2, description="Number of newest complete checkpoints to keep.")
    keep_every: Duration | None = Field(
        default=None, description="Also keep checkpoints at multiples of this; must be a multiple of every. null: none."
    )
    keep_best: str | None = Field(
        default=None,
        description="Also keep the best checkpoint by this evaluation metric, such as val/top1 (loss, mae, rmse: "
        "lowest, else highest); a new best evaluation saves a checkpoint. null: none.",
    )
    on_error: Literal["stop", "continue"] = Field(
        default="stop",
        description="Whether a checkpoint that cannot be written (for example on a full disk) stops the run. Older "
        "checkpoints are kept; continue tries again when the next checkpoint is due.",
    )


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


class InitConfig(Strict):
    """Initial weights from another run or program (with a new optimiser, at step 0)."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Run folder, checkpoint or safetensors file; or weights of another program: a timm or Hugging Face "
        "folder, Google's .npz, torchvision's safetensors.",
    )
    head: Literal["auto", "keep", "replace"] = Field(
        default="auto",
        description="replace: a new head (see model.head_init); auto: replace in pipelines/finetune.py, else keep.",
    )
    weights: Literal["raw", "ema"] = Field(
        default="raw", description="Use the raw or the EMA weights of a run or checkpoint."
    )
    pos_embed_filter: Literal["bilinear_corners", "bicubic", "bicubic_aa"] = Field(
        default="bilinear_corners",
        description="Resizing of the position embedding: the paper's code, DeiT's bicubic or timm's antialiased one.",
    )
