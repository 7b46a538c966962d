"""A part of a data set as people write it: ``10 %`` or ``50_000 samples``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pretrain.config.written import NUMBER, Written, number_text

_PATTERN = re.compile(rf"^\s*({NUMBER})\s*(%|samples?)\s*$")


@dataclass(frozen=True)
class Subset(Written):
    """A share in per cent, or a number of samples."""

    schema_pattern: ClassVar[str] = r"^\s*[0-9][0-9_.eE+-]*\s*(%|samples?)\s*$"

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
        if (
            not math.isfinite(value)
            or value <= 0
            or (unit == "%" and value > 100)
            or (unit == "samples" and value != int(value))
        ):
            allowed = "more than 0 and at most 100" if unit == "%" else "a whole number of at least 1"
            raise ValueError(f"{text!r}: the number before {unit!r} must be {allowed}")
        return cls(value, unit)

    def count(self, num_samples: int) -> int:
        """Samples of the subset of a set of ``num_samples``, rounded to the nearest; may be 0 or too many."""
        return round(num_samples * self.value / 100) if self.unit == "%" else int(self.value)

    def __str__(self) -> str:
        return f"{number_text(self.value)} {self.unit}"
