"""Durations such as ``90 epochs``, intervals such as ``15 minutes``, moments such as ``40 %``, and their base class."""

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
SECONDS = {"hours": 3600, "minutes": 60, "seconds": 1}  # the largest first
_PATTERN = re.compile(rf"^\s*({NUMBER})\s*([a-z]+)\s*$")
_SHARE = re.compile(rf"^\s*(0(?=\s*$)|{NUMBER}(?=\s*%))\s*%?\s*$")


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


@dataclass(frozen=True)
class Moment(Written):
    """A moment of a run: a share of it in per cent, or the training before it.

    Attributes:
        value: per cent of the run, or the training before it.
    """

    schema_pattern: ClassVar[str] = r"^\s*(0|[0-9][0-9_.eE+-]*\s*(%|steps?|epochs?|samples?))\s*$"

    value: float | Duration

    @classmethod
    def parse(cls, text: object) -> Moment:
        """Reads ``"40 %"``, a duration such as ``"30 epochs"``, or 0 for the start.

        Raises:
            ValueError: neither.
        """
        if isinstance(text, Moment):
            return text
        match = _SHARE.match(str(text))
        if match is not None and 0 <= (share := float(match[1].replace("_", ""))) <= 100:
            return cls(share)
        try:
            return cls(Duration.parse(text))
        except ValueError as error:
            raise ValueError(
                f"{text!r} is not a moment of a run: write 0, a share from 0 to 100 such as '40 %', or a duration "
                "such as '30 epochs'"
            ) from error

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"const": 0}, super().__get_pydantic_json_schema__(schema, handler)]}

    def __str__(self) -> str:
        return str(self.value) if isinstance(self.value, Duration) else f"{number_text(self.value)} %"


@dataclass(frozen=True)
class Interval(Written):
    """How often something happens: after so much training, after so much time, or whichever comes first.

    Attributes:
        training: at its multiples; None: the time alone decides.
        seconds: after this time since the last one; None: the training alone decides.
    """

    schema_pattern: ClassVar[str] = (
        r"^\s*[0-9][0-9_.eE+-]*\s*(steps?|epochs?|samples?|seconds?|minutes?|hours?)"
        r"(\s+or\s+[0-9][0-9_.eE+-]*\s*(steps?|epochs?|samples?|seconds?|minutes?|hours?))?\s*$"
    )

    training: Duration | None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: object) -> Interval:
        """Reads a duration, a time (``15 minutes``), or one of each with ``or`` between them.

        Raises:
            ValueError: neither, or two of one kind.
        """
        if isinstance(text, Interval):
            return text
        lengths = [_length(part) for part in text.split(" or ")] if isinstance(text, str) else []
        training = [length for length in lengths if isinstance(length, Duration)]
        times = [length for length in lengths if isinstance(length, float)]
        if lengths and None not in lengths and len(training) <= 1 and len(times) <= 1:
            return cls(next(iter(training), None), next(iter(times), None))
        raise ValueError(
            f"{text!r} is not an interval: write a duration such as '1000 steps', a time such as '15 minutes', or one "
            "of each, whichever comes first: '1000 steps or 15 minutes'"
        )

    def __str__(self) -> str:
        parts = [] if self.training is None else [str(self.training)]
        if self.seconds is not None:
            unit = next((unit for unit, size in SECONDS.items() if self.seconds % size == 0), "seconds")
            parts.append(f"{number_text(self.seconds / SECONDS[unit])} {unit}")
        return " or ".join(parts)


def _length(text: str) -> Duration | float | None:
    """A duration, or the seconds of a time such as ``15 minutes``, more than 0; None if it is neither."""
    match = _PATTERN.match(text)
    unit = match and match[2].removesuffix("s") + "s"
    if match is None or unit not in SECONDS:
        try:
            return Duration.parse(text)
        except ValueError:
            return None
    seconds = float(match[1].replace("_", "")) * SECONDS[unit]
    return seconds if 0 < seconds < math.inf else None
