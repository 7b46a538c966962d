"""Durations such as ``90 epochs``, ``20_000 steps`` or ``303e6 samples``, and the base class of such values."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

NUMBER = r"[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
UNITS = ("steps", "epochs", "samples")
_PATTERN = re.compile(rf"^\s*({NUMBER})\s*([a-z]+)\s*$")


class Written(ABC):
    """A value that ``parse`` reads from text and ``str`` writes; ``schema_pattern`` is its regex for editors."""

    schema_pattern: ClassVar[str]

    @classmethod
    @abstractmethod
    def parse(cls, text: object) -> Written:
        """Raises ValueError with a message that lists the accepted forms."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": cls.schema_pattern}


def number_text(value: float) -> str:
    """Formats a number without a redundant ``.0``."""
    return str(int(value) if abs(value) < 1e16 and value == int(value) else value)


@dataclass(frozen=True)
class Duration(Written):
    """A length of training: a value ≥ 0 and its unit (``steps``, ``epochs`` or ``samples``)."""

    schema_pattern: ClassVar[str] = r"^\s*[0-9][0-9_.eE+-]*\s*(steps?|epochs?|samples?)\s*$"

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Reads ``"<number> <unit>"``; the unit's singular is accepted.

        Raises:
            ValueError: no unit, an unknown unit, or not a number.
        """
        if isinstance(text, Duration):
            return text
        match = _PATTERN.match(text) if isinstance(text, str) else None
        unit = match and (match[2] if match[2].endswith("s") else match[2] + "s")
        if match is None or unit not in UNITS:
            raise ValueError(
                f"{text!r} is not a duration: write a number and its unit, such as '90 epochs', '20_000 steps' or "
                "'303e6 samples'"
            )
        value = float(match[1].replace("_", ""))
        if not math.isfinite(value):
            raise ValueError(f"{text!r}: the number is too large")
        return cls(value, unit)

    def to_steps(self, num_samples: int, global_batch_size: int) -> int:
        """Number of optimiser steps, rounded to the nearest.

        Args:
            num_samples: samples in one epoch of the training set.
            global_batch_size: samples per step.
        """
        return round(self.to_exact_steps(num_samples, global_batch_size))

    def to_exact_steps(self, num_samples: int, global_batch_size: int) -> float:
        """Number of optimiser steps before rounding: an epoch is seldom a whole number of steps."""
        if self.unit == "steps":
            return self.value
        samples = self.value * num_samples if self.unit == "epochs" else self.value
        return samples / global_batch_size

    def __str__(self) -> str:
        return f"{number_text(self.value)} {self.unit}"
