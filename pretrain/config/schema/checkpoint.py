"""What a run starts from and what it leaves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import PositiveInt, Strict


class CheckpointConfig(Strict):
    """When the state is saved, and how much of it stays."""

    every: Duration = Field(default=Duration(1000, "steps"), description="How often; the end of the run always saves.")
    asynchronous: bool = Field(
        default=True,
        description="Only copy the state to host memory at the step's boundary and write it while the training goes "
        "on; false: stand still until it is on the disk. Both need host memory for a rank's part of the state.",
    )
    keep_last: PositiveInt = Field(default=2, description="Complete checkpoints that are kept, the newest first.")
    keep_every: Duration | None = Field(
        default=None, description="Also keep those at multiples of this; a multiple of every. null: none."
    )
    keep_best: str | None = Field(
        default=None,
        description="Also keep the best by this metric of the evaluations, such as val/top1 (loss, mae, rmse: the "
        "lowest, else the highest); an evaluation that is better than all before saves a checkpoint. null: none.",
    )
    on_error: Literal["stop", "continue"] = Field(
        default="stop",
        description="What a checkpoint that cannot be written does to the run, such as on a full disk. The older ones "
        "stay as they are; continue tries again when the next is due.",
    )


class ResumeConfig(Strict):
    """How a run continues."""

    from_: str | None = Field(
        default=None,
        alias="from",
        description="Another run folder or one checkpoint: a fork with optimiser and stream.",
    )
    allow_changes: tuple[str, ...] = Field(
        default=(),
        description="Keys that may differ from the saved run's, such as optim.lr; any other change is refused.",
    )
    cooldown: Duration | None = Field(
        default=None,
        description="A fork that ends: the learning rate of a constant or rsqrt trunk goes linearly to 0 over so long "
        "after the checkpoint of from. duration and optim.schedule.cooldown follow from it.",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ResumeConfig:
        if self.cooldown is not None and self.from_ is None:
            raise ValueError("cooldown begins a fork; set from, the run or checkpoint whose training ends in it")
        return self


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
