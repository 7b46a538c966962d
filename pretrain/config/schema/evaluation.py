"""When and on what accuracy is measured."""

from __future__ import annotations

from pydantic import Field

from pretrain.config.duration import Duration
from pretrain.config.schema.base import PositiveInt, Strict
from pretrain.config.schema.source import PLACES


class EvaluationSetConfig(Strict):
    """A labelled set on which accuracy is measured; every image counts once."""

    shards: str = Field(description=f"Where one split's tars and their index lie: {PLACES}.")
    num_samples: PositiveInt = Field(description="Samples that the set is expected to have.")


class EvaluationConfig(Strict):
    """When and on what accuracy is measured. The end of the run always evaluates."""

    every: Duration | None = Field(default=None, description="How often during training; null: at the end only.")
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict, description="Name → set.")
    micro_batch_size: PositiveInt = Field(default=64, description="Images per device in one forward pass.")
