"""What a run starts from and what it leaves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pretrain.config.duration import Duration
from pretrain.config.schema.base import PositiveInt, Strict


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
