"""Which samples a run draws: a data set or a mixture of them, with subsets and drop lists."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import NUMBER, Written, number_text
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict

PLACES = (
    "a folder, http(s)://…, s3://bucket/prefix, or pipe:COMMAND with {name} in it (see allow_pipe); the URL of the "
    "index.json works too"
)
DROP_LIST = (
    'A JSONL file of samples that are never drawn: {"shard": "shard-000000.tar", "key": "000000042"} on each line.'
)
SUBSET = "A fixed subset, such as '10 %' or '50_000 samples'; a smaller subset is contained in a larger one."
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


class SourceConfig(Strict):
    """One packed split or a subset of it."""

    shards: str = Field(description=f"Location of the split's WebDataset tars and index: {PLACES}.")
    num_samples: PositiveInt = Field(
        description="Expected number of samples, without those of drop_list; checked against the index."
    )
    drop_list: str | None = Field(
        default=None,
        description=DROP_LIST,
    )
    subset: Subset | None = Field(
        default=None,
        description=SUBSET,
    )

    @property
    def drawn_samples(self) -> int:
        """Number of samples in an epoch."""
        return self.num_samples if self.subset is None else self.subset.count(self.num_samples)

    @model_validator(mode="after")
    def _subset_fits(self) -> SourceConfig:
        check_subset(self.subset, self.num_samples)
        return self


class WeightedSourceConfig(SourceConfig):
    """One of the sets of a mixture."""

    weight: PositiveFloat = Field(description="Its share of the draws, relative to the other weights.")


class TrainSetConfig(Strict):
    """The training data: one set, or a mixture of several."""

    shards: str | None = Field(
        default=None, description=f"Location of the split's WebDataset tars and index: {PLACES}."
    )
    num_samples: PositiveInt = Field(
        description="Expected number of samples, without those of drop_list; checked against the index. "
        "For a mixture: the sum."
    )
    num_classes: PositiveInt = Field(
        description="Expected number of classes, or length of the target vectors: the width of the head."
    )
    drop_list: str | None = Field(default=None, description=DROP_LIST)
    subset: Subset | None = Field(default=None, description=SUBSET)
    mixture: tuple[WeightedSourceConfig, ...] = Field(
        default=(),
        description="Instead of shards: several sets with the same classes, each with its own weight and epochs.",
    )
    allow_pipe: bool = Field(
        default=False, description="Whether shards may be pipe:COMMAND, which runs a shell command on every node."
    )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The data sets; a single one without a mixture."""
        if self.mixture:
            return self.mixture
        assert self.shards is not None
        return (
            SourceConfig(
                shards=self.shards, num_samples=self.num_samples, drop_list=self.drop_list, subset=self.subset
            ),
        )

    @property
    def smallest_source(self) -> int:
        """Samples in an epoch of the smallest set; each lane needs at least one sample of every set."""
        return min(source.drawn_samples for source in self.sources)

    @property
    def drawn_samples(self) -> int:
        """Number of samples in an epoch, summed over the sets of a mixture."""
        return sum(source.drawn_samples for source in self.sources)

    @model_validator(mode="after")
    def _one_or_several(self) -> TrainSetConfig:
        if (self.shards is None) == (not self.mixture):
            raise ValueError("give either shards (one set) or mixture (several)")
        for name in ("drop_list", "subset") if self.mixture else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to each set of the mixture; beside mixture it would be ignored")
        total = sum(source.num_samples for source in self.mixture)
        if self.mixture and total != self.num_samples:
            raise ValueError(f"num_samples: {self.num_samples} is not the sum of the mixture's sets, {total}")
        check_subset(self.subset, self.num_samples)
        return self


def check_subset(subset: Subset | None, num_samples: int) -> None:
    """Refuses a subset that is empty or larger than the set."""
    if subset is not None and not 1 <= subset.count(num_samples) <= num_samples:
        raise ValueError(f"subset: {subset} is not between one sample and all {num_samples} of the set")
