"""Several runs: the sweep over the settings of an experiment, and the chain file, from images to a report."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveInt, Strict

Words = tuple[str, ...]


class SweepConfig(Strict):
    """A grid of trials, compared on images outside the training and test sets; then runs with the best settings."""

    grid: Annotated[dict[str, list[Any]], Field(min_length=1)] = Field(
        description="Dotted key → its values, such as optim.lr: [0.001, 0.003]; every combination is a trial. With one "
        "combination and no dev there is nothing to choose, and no trial is run."
    )
    dev: dict[str, Any] = Field(
        default_factory=dict,
        description="Dotted key → value of the trials only: a training set without the dev split, and that split as an "
        "evaluation set.",
    )
    metric: str = Field(
        default="dev/top1",
        description="SET/METRIC that selects the best trial (loss, mae, rmse: lowest, else highest).",
    )
    num_seeds: PositiveInt = Field(
        default=3, description="Runs of the best settings on the complete training set, with seeds seed, seed + 1, …"
    )

    @model_validator(mode="after")
    def _has_values(self) -> SweepConfig:
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key}: has no values; name some, or remove the key")
            if key in self.dev:
                raise ValueError(f"dev.{key}: is also in the grid, which would be ignored; remove one of the two")
        return self


class StageConfig(Strict):
    """A stage that is one job: ``python -m pipelines STAGE`` with these arguments."""

    arguments: Words = Field(default=(), description="Arguments after the stage's name.")
    sbatch: Words = Field(default=(), description="Options of sbatch, such as --partition=cpu.")


class PackConfig(StageConfig):
    """Packing as a job array, followed by the merge."""

    arguments: Words = Field(description="Arguments after pack, the source first; --out and --task are added.")
    out: str = Field(description="Output folder of the packed data set.")
    tasks: PositiveInt = Field(default=16, description="Number of array tasks.")

    @model_validator(mode="after")
    def _nothing_twice(self) -> PackConfig:
        taken = [word for word in self.arguments if word.split("=")[0] in ("--out", "--task")]
        if taken:
            raise ValueError(f"arguments: {taken[0]} is set by the chain; use pack.out and pack.tasks")
        return self


class PretrainConfig(Strict):
    """The pretraining."""

    script: str = Field(description="Job script, such as slurm/pretrain_vit_l.sh.")
    config: str = Field(description="Experiment YAML.")
    cluster: str | None = Field(default=None, description="Cluster YAML; null: the script's default.")
    overrides: Words = Field(default=(), description="Overrides of the config, such as optim.lr=3e-4.")
    sbatch: Words = Field(default=(), description="Options of sbatch, such as --nodes=2.")


class FinetuneConfig(Strict):
    """The fine-tuning sweep: every config at every learning rate, one array task each."""

    configs: Annotated[Words, Field(min_length=1)] = Field(description="Fine-tuning YAMLs.")
    lrs: Annotated[Words, Field(min_length=1)] = Field(description="Learning rates, spelled as in the run names.")
    overrides: Words = Field(default=(), description="Overrides of the configs.")
    sbatch: Words = Field(default=(), description="Options of sbatch for every task.")


class ChainConfig(Strict):
    """All jobs from images to a report; each stage starts after the previous one."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="Name of the chain; submitted jobs are recorded in runs/chains/NAME.json."
    )
    pack: PackConfig | None = None
    dedup: StageConfig | None = None
    pretrain: PretrainConfig | None = None
    finetune: FinetuneConfig | None = None
    evaluate: StageConfig | None = None
    collect: StageConfig | None = None
    report: StageConfig | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> ChainConfig:
        if not self.model_fields_set - {"name"}:
            raise ValueError("a chain needs at least one stage: pack, pretrain, finetune, …")
        if self.finetune is not None and self.pretrain is None:
            raise ValueError("finetune: needs the section pretrain, whose run it starts from; or sbatch it alone")
        return self
