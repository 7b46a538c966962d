"""Which samples a run draws: a set, what is left out of it, and sets that are mixed."""

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
    "index.json serves too"
)
DROP_LIST = (
    'A JSONL file of samples that are never drawn: {"shard": "shard-000000.tar", "key": "000000042"} on each line.'
)
SUBSET = "A fixed part of the set, such as '10 %' or '50_000 samples'; a smaller part lies within a larger one."
_SUBSET_TEXT = re.compile(rf"^\s*({NUMBER})\s*(%|samples?)\s*$")


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
        """Samples of the subset of a set of ``num_samples``, rounded to the nearest; may be 0 or too many."""
        return round(num_samples * self.value / 100) if self.unit == "%" else int(self.value)

    def __str__(self) -> str:
        return f"{number_text(self.value)} {self.unit}"


class SourceConfig(Strict):
    """One packed split, or a part of it."""

    shards: str = Field(description=f"Where the split's WebDataset tars and their index lie: {PLACES}.")
    num_samples: PositiveInt = Field(
        description="Samples that the set is expected to have, without those of drop_list; checked against the index."
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
        """Samples that an epoch consists of."""
        return self.num_samples if self.subset is None else self.subset.count(self.num_samples)

    @model_validator(mode="after")
    def _subset_fits(self) -> SourceConfig:
        check_subset(self.subset, self.num_samples)
        return self


class WeightedSourceConfig(SourceConfig):
    """One of the sets of a mixture."""

    weight: PositiveFloat = Field(description="Its share of the draws, relative to the others' weights.")


class TrainSetConfig(Strict):
    """What the training draws from: one set, or several."""

    shards: str | None = Field(
        default=None, description=f"Where one split's WebDataset tars and their index lie: {PLACES}."
    )
    num_samples: PositiveInt = Field(
        description="Samples that the set is expected to have, without those of drop_list; checked against the index. "
        "Of a mixture: the sum."
    )
    num_classes: PositiveInt = Field(
        description="Classes that the set is expected to have, or numbers in each of its vectors: the head's width."
    )
    drop_list: str | None = Field(default=None, description=DROP_LIST)
    subset: Subset | None = Field(default=None, description=SUBSET)
    mixture: tuple[WeightedSourceConfig, ...] = Field(
        default=(),
        description="Instead of shards: several sets of the same classes, each with its weight and its own epochs.",
    )
    allow_pipe: bool = Field(
        default=False, description="Whether shards may be pipe:COMMAND, which runs a shell command on every node."
    )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sets, one where nothing is mixed."""
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
        """Samples in an epoch of the smallest set: each lane needs one of every set."""
        return min(source.drawn_samples for source in self.sources)

    @property
    def drawn_samples(self) -> int:
        """Samples that an epoch consists of; of a mixture: those of all sets together."""
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
    """Refuses a part that is nothing or more than there is."""
    if subset is not None and not 1 <= subset.count(num_samples) <= num_samples:
        raise ValueError(f"subset: {subset} is not between one sample and all {num_samples} of the set")
