"""The stages of a chain: what each submits, and how one sees that it has been done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.config.overrides import override
from pretrain.config.schema.chain import ChainConfig, FinetuneConfig, PretrainConfig, StageConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.data.storage.index import TABLE_FILE
from pretrain.engine.run_folder import COMPLETE, read_verdict
from pretrain.errors import ConfigError

CHAINS = Path(os.environ.get("CHAINS_FOLDER", "runs/chains"))  # what was submitted is remembered here
PLAIN_STAGES = ("dedup", "evaluate", "collect", "report")


@dataclass(frozen=True)
class Stage:
    """One submission.

    Attributes:
        name: of the stage.
        after: names of the stages that must have succeeded.
        words: options of sbatch, the script and its arguments.
        environment: variables that the job gets.
        is_done: whether its artifact is there.
    """

    name: str
    after: tuple[str, ...]
    words: tuple[str, ...]
    environment: dict[str, str]
    is_done: Callable[[], bool]


def stages_of(chain: ChainConfig, known: Sequence[str]) -> list[Stage]:
    """The submissions of a chain in their order.

    Args:
        chain: the file.
        known: the stages that ``python -m pipelines`` has.

    Raises:
        ConfigError: a stage does not exist, a file is missing, or the GPUs do not fit the batch.
    """
    for name in PLAIN_STAGES:
        if getattr(chain, name) is not None and name not in known:
            raise ConfigError(
                f"{name}: there is no stage python -m pipelines {name} in this version (there are {', '.join(known)}); "
                f"remove the section {name}"
            )
    stages: list[Stage] = []

    def add(name: str, words: Sequence[str], is_done: Callable[[], bool], environment: dict[str, str]) -> None:
        after = (stages[-1].name,) if stages else ()
        stages.append(Stage(name, after, tuple(words), environment, is_done))

    def add_plain(name: str, stage: StageConfig | None) -> None:
        if stage is not None:
            done = CHAINS / chain.name / f"{name}.done"
            words = [f"--job-name={name}", *stage.sbatch, "slurm/stage.sh", name, *stage.arguments]
            add(name, words, done.exists, {"STAGE_DONE": str(done)})

    if chain.pack is not None:
        pack, out = chain.pack, Path(chain.pack.out)
        merged = lambda: any(out.glob(f"*/{TABLE_FILE}"))  # noqa: E731
        packing = [f"--array=1-{pack.tasks}", *pack.sbatch, "slurm/pack_shards.sh", *pack.arguments, "--out", pack.out]
        add("pack", packing, merged, {})
        add("merge", ["--job-name=merge", *pack.sbatch, "slurm/pack_shards.sh", "merge", pack.out], merged, {})
    add_plain("dedup", chain.dedup)
    if chain.pretrain is not None:
        experiment = check_pretraining(chain.pretrain, has_data=chain.pack is None and chain.dedup is None)
        run = Path(experiment.output_dir) / experiment.name
        words = [*chain.pretrain.sbatch, chain.pretrain.script, chain.pretrain.config, *chain.pretrain.overrides]
        cluster = {"CLUSTER": chain.pretrain.cluster} if chain.pretrain.cluster else {}
        add("pretrain", words, lambda: is_complete(run), cluster)
        if chain.finetune is not None:
            add_finetuning(chain.finetune, run, add)
    for name in ("evaluate", "collect", "report"):
        add_plain(name, getattr(chain, name))
    return stages


def add_finetuning(sweep: FinetuneConfig, run: Path, add: Callable[..., None]) -> None:
    """One array with the tasks that are not done yet.

    Raises:
        ConfigError: a config is wrong.
    """
    names = [f"{Path(config).stem}_lr{lr}" for config in sweep.configs for lr in sweep.lrs]
    place = override("output_dir", f"{run}_transfer")  # as the script says it; the chain's own word comes after it
    folder = Path(f"{run}_transfer")
    for config in sweep.configs:
        for lr in sweep.lrs:
            loaded = load_experiment(config, overrides=[f"optim.lr={lr}", place, *sweep.overrides])
            folder = Path(loaded.experiment.output_dir)
    left = [index for index, name in enumerate(names) if not is_complete(folder / name)]
    array = ",".join(map(str, left)) if left and len(left) < len(names) else f"0-{len(names) - 1}"
    script = ["slurm/finetune.sh", str(run), *sweep.configs, f"lrs={','.join(sweep.lrs)}", *sweep.overrides]
    add("finetune", [f"--array={array}", *sweep.sbatch, *script], lambda: not left, {})


def check_pretraining(pretrain: PretrainConfig, *, has_data: bool) -> Experiment:
    """What the job would find in its first seconds is found before it is submitted.

    Raises:
        ConfigError: the config, or nodes × GPUs that do not fit the batch.
        DataError: no shards, where no earlier stage makes them.
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
    """The options in a script's head, and those of the command line over them."""
    head = re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", Path(script).read_text(), re.M)
    given = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
    return dict(head) | {name: value for name, _, value in given}


def is_complete(run: Path) -> bool:
    """Whether the run has a verdict that says so."""
    verdict = read_verdict(run).value
    return verdict is not None and verdict["outcome"] == COMPLETE
