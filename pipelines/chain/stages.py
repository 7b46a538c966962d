"""The stages of a chain: what each submits, and how to see that it is done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.weights.transfer import transfer_folder
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.jobs import ChainConfig, FinetuneConfig, PackConfig, PretrainConfig, StageConfig
from pretrain.config.tree import override
from pretrain.data.storage.index import TABLE_FILE
from pretrain.engine.run_folder import COMPLETE, read_verdict
from pretrain.errors import ConfigError
from pretrain.shipped_files import RECIPE

CHAINS = Path(os.environ.get("CHAINS_FOLDER", "runs/chains"))  # records what was submitted


@dataclass(frozen=True)
class Stage:
    """One submission.

    Attributes:
        name: of the stage.
        words: options of sbatch, the script and its arguments.
        is_done: whether its artifact is there.
        environment: variables that the job gets.
        after: names of the stages that must have succeeded.
    """

    name: str
    words: tuple[str, ...]
    is_done: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()


def stages_of(chain: ChainConfig) -> list[Stage]:
    """The submissions of a chain, each after the one before it.

    Raises:
        ConfigError: a file is missing, a config is wrong, or the GPUs do not fit the batch.
        DataError: no shards to pretrain on, and no earlier stage makes them.
    """
    stages = [*_packing(chain.pack), *_script(chain, "dedup"), *_training(chain)]
    stages += [stage for name in ("evaluate", "collect", "report") for stage in _script(chain, name)]
    before = [(), *((stage.name,) for stage in stages)]
    return [replace(stage, after=after) for stage, after in zip(stages, before, strict=False)]


def _packing(pack: PackConfig | None) -> Iterator[Stage]:
    if pack is None:
        return

    def is_merged() -> bool:
        return any(Path(pack.out).glob(f"*/{TABLE_FILE}"))

    script = "slurm/pack_shards.sh"
    yield Stage(
        "pack", (f"--array=1-{pack.tasks}", *pack.sbatch, script, *pack.arguments, "--out", pack.out), is_merged
    )
    yield Stage("merge", ("--job-name=merge", *pack.sbatch, script, "merge", pack.out), is_merged)


def _script(chain: ChainConfig, name: str) -> Iterator[Stage]:
    """A stage that ``slurm/stage.sh`` runs; the script leaves a file when the stage has succeeded."""
    section: StageConfig | None = getattr(chain, name)
    if section is not None:
        done = CHAINS / chain.name / f"{name}.done"
        words = (f"--job-name={name}", *section.sbatch, "slurm/stage.sh", name, *section.arguments)
        yield Stage(name, words, done.exists, {"STAGE_DONE": str(done)})


def _training(chain: ChainConfig) -> Iterator[Stage]:
    pretrain = chain.pretrain
    if pretrain is None:
        return
    experiment = check_pretraining(pretrain, has_data=chain.pack is None and chain.dedup is None)
    run = Path(experiment.output_dir) / experiment.name
    words = (*pretrain.sbatch, pretrain.script, pretrain.config, *pretrain.overrides)
    cluster = {"CLUSTER": pretrain.cluster} if pretrain.cluster else {}
    yield Stage("pretrain", words, lambda: is_complete(run), cluster)
    if chain.finetune is not None:
        yield _finetuning(chain.finetune, run)


def _finetuning(sweep: FinetuneConfig, run: Path) -> Stage:
    """One array with the tasks that are not done yet."""
    names = [f"{_name(config)}_lr{lr}" for config in sweep.configs for lr in sweep.lrs]
    folder = transfer_folder(run)
    place = override("output_dir", str(folder))  # as the script sets it; the chain's own overrides come after it
    for config in sweep.configs:
        for lr in sweep.lrs:
            loaded = load_experiment(config, overrides=[f"optim.lr={lr}", place, *sweep.overrides])
            folder = Path(loaded.experiment.output_dir)
    left = [index for index, name in enumerate(names) if not is_complete(folder / name)]
    array = ",".join(map(str, left)) if left and len(left) < len(names) else f"0-{len(names) - 1}"
    script = ("slurm/finetune.sh", str(run), *sweep.configs, f"lrs={','.join(sweep.lrs)}", *sweep.overrides)
    return Stage("finetune", (f"--array={array}", *sweep.sbatch, *script), lambda: not left)


def _name(config: str) -> str:
    """The part of a fine-tuning's name that its config gives, as ``slurm/finetune.sh`` makes it."""
    return Path(config.removeprefix(RECIPE)).name.removesuffix(".yaml")


def check_pretraining(pretrain: PretrainConfig, *, has_data: bool) -> Experiment:
    """Runs the job's own startup checks before submitting it.

    Raises:
        ConfigError: the config, or nodes × GPUs that do not fit the batch.
        DataError: no shards, and no earlier stage makes them.
    """
    if not Path(pretrain.script).is_file():
        raise ConfigError(f"pretrain.script: {pretrain.script} does not exist; slurm/ has the job scripts")
    overrides = [*pretrain.overrides, "cluster.num_devices=auto"]
    named = re.search(r"\$\{CLUSTER:-([^}]+)\}", Path(pretrain.script).read_text())
    cluster = pretrain.cluster or (named[1] if named else None)
    resolved = load_experiment(pretrain.config, cluster=cluster, overrides=overrides)
    options = sbatch_options(pretrain.script, pretrain.sbatch)
    nodes, per_node = options.get("nodes", "1").split("-")[-1], options.get("ntasks-per-node", "1")
    ranks = int(nodes) * int(per_node)
    check(resolved, world=ranks, require_data=has_data)
    return resolved.experiment


def sbatch_options(script: str, words: Sequence[str]) -> dict[str, str]:
    """The ``#SBATCH`` options of a script, overridden by those of the command line."""
    head = re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", Path(script).read_text(), re.M)
    given = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
    return dict(head) | {name: value for name, _, value in given}


def is_complete(run: Path) -> bool:
    """Whether the run's verdict is ``complete``."""
    verdict = read_verdict(run).value
    return verdict is not None and verdict["outcome"] == COMPLETE
