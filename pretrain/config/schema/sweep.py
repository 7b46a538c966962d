"""Settings of ``pipelines sweep``, which searches for the best settings of an experiment."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveInt, Strict


class SweepConfig(Strict):
    """A grid of trials, compared on images outside the training and test sets; then runs with the best settings."""

    grid: Annotated[dict[str, list[Any]], Field(min_length=1)] = Field(
        description="Dotted key → its values, such as optim.lr: [0.001, 0.003]; every combination is a trial. With one "
        "combination and no dev there is nothing to choose, and no trial is run."
    )
    dev: dict[str, Any] = Field(
        default_factory=dict,
        description="Dotted key → value of the trials only: a training set without the dev split, and that split as an "
        "evaluation set.",
    )
    metric: str = Field(
        default="dev/top1",
        description="SET/METRIC that selects the best trial (loss, mae, rmse: lowest, else highest).",
    )
    num_seeds: PositiveInt = Field(
        default=3, description="Runs of the best settings on the complete training set, with seeds seed, seed + 1, …"
    )

    @model_validator(mode="after")
    def _has_values(self) -> SweepConfig:
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key}: has no values; name some, or remove the key")
            if key in self.dev:
                raise ValueError(f"dev.{key}: is also in the grid, which would be ignored; remove one of the two")
        return self
