"""A part of a data set as people write it: ``10 %`` or ``50_000 samples``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*(%|samples?)\s*$")


@dataclass(frozen=True)
class Subset:
    """A share in per cent, or a number of samples."""

    value: float
    unit: Literal["%", "samples"]

    @classmethod
    def parse(cls, text: object) -> Subset:
        """Reads ``"10 %"`` or ``"50_000 samples"``.

        Raises:
            ValueError: no unit, or nothing or more than everything.
        """
        if isinstance(text, Subset):
            return text
        match = _PATTERN.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is no part of a data set: write '10 %' or '50_000 samples'")
        value, unit = float(match[1].replace("_", "")), "%" if match[2] == "%" else "samples"
        if value <= 0 or (unit == "%" and value > 100) or (unit == "samples" and value != int(value)):
            allowed = "more than 0 and at most 100" if unit == "%" else "a whole number of at least 1"
            raise ValueError(f"{text!r}: the number before {unit!r} must be {allowed}")
        return cls(value, unit)

    def count(self, num_samples: int) -> int:
        """Samples of the subset of a set of ``num_samples``, rounded to the nearest; may be 0 or too many."""
        return round(num_samples * self.value / 100) if self.unit == "%" else int(self.value)

    def __str__(self) -> str:
        value = int(self.value) if self.value == int(self.value) else self.value
        return f"{value} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": r"^\s*[0-9][0-9_.eE+-]*\s*(%|samples?)\s*$"}
