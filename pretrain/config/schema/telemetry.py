"""What is watched while a run goes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pretrain.config.schema.base import PositiveInt, Strict


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


class TelemetryConfig(Strict):
    """What is written about the run while it goes."""

    log_every: PositiveInt = Field(default=10, description="Steps between two lines of metrics.jsonl.")
    tensorboard: bool = Field(default=True, description="Also write TensorBoard event files.")
