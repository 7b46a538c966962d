"""A part of a data set, as a config writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pretrain.config.duration import NUMBER, Written, number_text

_SUBSET_TEXT = re.compile(rf"^\s*({NUMBER})\s*(%|samples?)\s*$")


@dataclass(frozen=True)
class Subset(Written):
    """A percentage or a number of samples."""

    schema_pattern: ClassVar[str] = r"^\s*[0-9][0-9_.eE+-]*\s*(%|samples?)\s*$"

    value: float
    unit: Literal["%", "samples"]

    @classmethod
    def parse(cls, text: object) -> Subset:
        """Reads ``"10 %"`` or ``"50_000 samples"``.

        Raises:
            ValueError: the unit is missing, or the number is out of range.
        """
        if isinstance(text, Subset):
            return text
        match = _SUBSET_TEXT.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{text!r} is not a part of a data set: write '10 %' or '50_000 samples'")
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
        """Size of the subset of a set of ``num_samples``, rounded to the nearest; not checked against the set."""
        return round(num_samples * self.value / 100) if self.unit == "%" else int(self.value)

    def __str__(self) -> str:
        return f"{number_text(self.value)} {self.unit}"


def check_subset(subset: Subset | None, num_samples: int) -> None:
    """Refuses a subset that is empty or larger than the set."""
    if subset is not None and not 1 <= subset.count(num_samples) <= num_samples:
        raise ValueError(f"subset: {subset} is not between one sample and all {num_samples} of the set")
