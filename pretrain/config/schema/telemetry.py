"""What is watched while a run goes."""

from __future__ import annotations

from pydantic import Field

from pretrain.config.schema.base import PositiveInt, Strict


class GuardConfig(Strict):
    """What happens when a loss or a gradient is not finite: the update is skipped on all ranks and counted."""

    max_consecutive_skips: PositiveInt = Field(default=20, description="So many skipped updates in a row end the run.")


class TelemetryConfig(Strict):
    """What is written about the run while it goes."""

    log_every: PositiveInt = Field(default=10, description="Steps between two lines of metrics.jsonl.")
    tensorboard: bool = Field(default=True, description="Also write TensorBoard event files.")
