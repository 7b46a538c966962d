"""Low-rank adapters: which layers have them, and their size."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from pretrain.config.schema.base import PositiveFloat, PositiveInt, Probability, Strict

ATTENTION_AND_MLP = ("qkv", "proj", "fc1", "fc2")


class LoraConfig(Strict):
    """Low-rank adapters (LoRA, 2106.09685): W x + (alpha / rank) · B A x, where W is frozen, and A and B are trained.

    The head is trained too. Weights files and exports hold the sum of both, so that nothing else knows of adapters.
    """

    rank: PositiveInt = Field(default=8, description="Rows of A and columns of B.")
    alpha: PositiveFloat = Field(default=16.0, description="The adapters' sum is multiplied by alpha / rank.")
    dropout: Probability = Field(default=0.0, description="Dropout of an adapter's input.")
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=ATTENTION_AND_MLP,
        description="Last names of the dense layers that are adapted, as peft's target_modules: qkv and proj of "
        "attention, fc1 and fc2 of the MLP. timm's models have others, such as q, kv or fc1_g.",
    )
    train: tuple[str, ...] = Field(
        default=(),
        description="Further parameters to train completely, besides the head: regular expressions searched in their "
        "names, such as norm or ^pos_embed$.",
    )

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @field_validator("train")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns
