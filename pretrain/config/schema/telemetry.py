"""Monitoring of a run: the guard against non-finite losses, and logging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict


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
