"""The numbers of a model that decide the memory of its training. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "autocast"]

FP32 = 4
WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 4}


@dataclass(frozen=True)
class Footprint:
    """The numbers of a model that decide its memory, at one precision and activation-checkpointing policy.

    Attributes:
        parameters: number of parameters.
        largest_unit: parameters that ZeRO-3 gathers together: those of a block, or of a layer.
        kept: bytes per image that the forward pass keeps for the backward pass.
        working: additional bytes per image that the backward pass needs.
        copies: bytes of weights in another type that the backward pass reads.
    """

    parameters: int
    largest_unit: int
    kept: int
    working: int
    copies: int
