"""The file that an entry to a race consists of: what one run was, and how long it took to a target.

``python -m pipelines report RUN --submission`` writes it and ``report FILE.json --submission`` checks it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, PositiveInt, Strict

Whole = Annotated[int, Field(ge=0)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{16,64}$")]
SUBMISSION_FORMAT = 1


class Target(Strict):
    """The accuracy that ends the clock."""

    metric: str = Field(description="SET/METRIC of an evaluation, such as val/top1; SET_ema/METRIC for EMA weights.")
    value: Annotated[float, Field(gt=0, le=1)] = Field(description="Share, 0-1, that must be reached.")

    @property
    def set_name(self) -> str:
        """Name of the evaluation set."""
        return self.metric.partition("/")[0].removesuffix("_ema")


class Spent(Strict):
    """Time spent on one part of a start."""

    ms: Whole = Field(description="Wall time in milliseconds.")
    gpu_ms: Whole = Field(description="The same times the devices that it held.")


class Start(Strict):
    """One start of the run; a run that was never interrupted has one."""

    ranks: PositiveInt = Field(description="Devices that train.")
    gpus: PositiveInt = Field(description="Devices that the job holds.")
    parts: dict[str, Spent] = Field(description="The parts of goodput, with the time before the start.")


class Point(Strict):
    """One evaluation."""

    step: PositiveInt = Field(description="Steps done.")
    seconds: NonNegativeFloat = Field(description="From the run's first process to the end of this evaluation.")
    value: Annotated[float, Field(ge=0, le=1)] = Field(description="The target's metric.")


class DataOrder(Strict):
    """Fingerprint of the samples that were drawn."""

    lines: PositiveInt = Field(description="Lines of metrics that it covers, up to the target.")
    digest: Hash = Field(description="Hash of their steps and checksums of batches (batch_digest).")


class Submission(Strict):
    """An entry to a race."""

    format: Literal[1] = Field(description="Of this file.")
    race: str | None = Field(description="The race whose rules it keeps; null: a target of the user's own.")
    run: str = Field(description="Name of the run.")
    target: Target
    step: PositiveInt = Field(description="Steps at which the target was first reached.")
    samples: PositiveInt = Field(description="Images drawn until then.")
    exaflops: PositiveFloat = Field(description="Of training until then: 3 × forward, 2 per multiply-add.")
    seconds: PositiveFloat = Field(description="From the run's first process to the end of the deciding evaluation.")
    seconds_without_evaluation: PositiveFloat = Field(description="The same without evaluations.")
    gpu_hours: PositiveFloat = Field(description="Of all devices held until then.")
    seed: int
    config_digest: Hash = Field(description="Hash of the settings that decide the result.")
    settings: dict[str, Any] = Field(description="All settings of the run, with their defaults.")
    version: str = Field(description="Of this project.")
    source: Hash = Field(description="Hash of its source files as they were run.")
    packages: dict[str, str] = Field(description="Versions of libraries.")
    devices: Annotated[list[str], Field(min_length=1)] = Field(description="Names that the drivers report.")
    starts: Annotated[list[Start], Field(min_length=1)] = Field(description="In order; the last reached the target.")
    curve: Annotated[list[Point], Field(min_length=1)] = Field(description="Every evaluation up to the target.")
    data_order: DataOrder
