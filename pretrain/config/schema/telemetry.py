"""What is watched while a run goes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict


class GuardConfig(Strict):
    """What happens when a loss or a gradient is not finite: the update is skipped on all ranks and counted."""

    max_consecutive_skips: PositiveInt = Field(
        default=20,
        description="After so many skipped updates in a row the run goes back to the last good checkpoint and past the "
        "samples that were drawn since then.",
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        default=2, description="So many times in a run at most; the next time ends it. 0: the first time ends it."
    )


class WandbConfig(Strict):
    """Weights & Biases; needs the package ``wandb`` (``pip install 'vit-pretrain[wandb]'``)."""

    project: str = Field(description="Project that the run appears in.")
    entity: str | None = Field(default=None, description="User or team; null: the default of the account.")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: files in the run folder, without network; `wandb sync` sends them."
    )
    tags: tuple[str, ...] = Field(default=(), description="Tags of the run.")


class TelemetryConfig(Strict):
    """What is written about the run while it goes."""

    log_every: PositiveInt = Field(default=10, description="Steps between two lines of metrics.jsonl.")
    tensorboard: bool = Field(default=True, description="Also write TensorBoard event files.")
    wandb: WandbConfig | None = Field(default=None, description="Also report to Weights & Biases; null: do not.")
    peak_tflops: PositiveFloat | None = Field(
        default=None,
        description="TFLOP/s of one device at best in this precision, for MFU; null: by the device's name, where known "
        "(configs/devices.yaml).",
    )
