"""What of a model decides the memory that training needs. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "autocast"]

FP32 = 4
WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 4}


@dataclass(frozen=True)
class Footprint:
    """What of a model decides its memory, at one precision and one policy of activation checkpointing.

    Attributes:
        parameters: their number.
        largest_unit: parameters that ZeRO-3 gathers together: those of a block, or of a layer.
        kept: bytes per image that the forward pass keeps for the backward pass.
        working: bytes per image that the backward pass needs on top of that.
        copies: bytes of weights in another type that the backward pass reads.
    """

    parameters: int
    largest_unit: int
    kept: int
    working: int
    copies: int
