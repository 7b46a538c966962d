"""``python -m pipelines.slurm begin -- ARGUMENTS``: the first command of a job, before any node starts to work.

Validates as much as possible, chooses the ranks, records the start in the run folder, and prints shell variables for
the job script on stdout; messages to the user go to stderr.
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.nodes.checks import token_path
from pipelines.slurm import scheduler, starts
from pipelines.slurm.end import EXIT_GAVE_UP
from pipelines.slurm.layout import Layout, headline, largest_layout
from pipelines.slurm.scheduler import Job
from pretrain.check.derived import load_complete
from pretrain.check.experiment import check
from pretrain.config.loader import Resolved
from pretrain.config.schema.experiment import Experiment
from pretrain.config.tree import override
from pretrain.data.order.order import allowed_worlds
from pretrain.data.sources import lanes_of
from pretrain.data.storage.location import Location
from pretrain.distributed.rank import RESTART_COUNT
from pretrain.engine import ownership
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.models.families.registry import cost_is_known, num_parameters
from pretrain.run import Entry, parse_arguments

HOST_GIB_PER_RANK = 1.0
ALL_DEVICES = "cluster.num_devices=auto"  # the job determines their number
PATIENCE_S = 2.5 * ownership.HEARTBEAT_S  # the training itself handles longer silence
ENTRIES = {
    "pretrain": ("pretrain/run.py", Entry("deepspeed", "keep")),
    "finetune": ("pipelines/finetune.py", Entry("accelerate", "replace")),
}


@dataclass(frozen=True)
class Training:
    """A training as requested from its script."""

    script: str
    arguments: list[str]
    resolved: Resolved
    entry: Entry

    @property
    def experiment(self) -> Experiment:
        return self.resolved.experiment

    @property
    def run(self) -> Path:
        return Path(self.experiment.output_dir) / self.experiment.name


def begin(kind: str, words: Sequence[str], limit: int, spares: int) -> int:
    """Prints the job's variables; returns the exit code.

    Args:
        kind: pretrain or finetune.
        words: the arguments of the training.
        limit: restarts in a row that may bring no newer checkpoint.
        spares: nodes to keep for those that fail.

    Raises:
        UserError: the config, the data or the number of GPUs is not usable.
    """
    training, job = read_training(kind, [*words, ALL_DEVICES]), scheduler.current_job()
    step, before = starts.checkpoint_step(training.run), starts.starts(training.run)
    job = replace(job, restart_count=next_count(before, job))
    worlds = allowed_worlds(training.experiment.batches.unit, lanes_of(training.experiment), job.gpus)
    layout = choose_layout(training, job, spares, worlds)
    refuse_a_held_folder(training.run, job)
    start = starts.Start(
        job_id=job.job_id,
        restart_count=job.restart_count,
        nodes=job.nodes,
        gpus=job.gpus,
        ranks=layout.ranks,
        step=step,
        log=scheduler.record(job.job_id).get("StdOut", ""),
        time=starts.now(),
    )
    starts.append(training.run, start)
    say(headline(start, before, layout, spares * job.gpus_per_node))
    idle = starts.restarts_without_progress([*before, start], job.job_id, step)
    if idle > limit:
        say(f"gave up: {idle} restarts in a row without a newer checkpoint than step {step}")
        return EXIT_GAVE_UP
    token = uuid.uuid4().hex
    token_path(training.run).parent.mkdir(exist_ok=True)
    write_atomic(token_path(training.run), token)
    print(shell_variables(training, job, layout, token, worlds))
    return 0


def next_count(before: Sequence[starts.Start], job: Job) -> int:
    """A number of restarts for this start, above that of each earlier one of this job."""
    return max([job.restart_count, *(start.restart_count + 1 for start in before if start.job_id == job.job_id)])


def read_training(kind: str, words: Sequence[str]) -> Training:
    """The config that the arguments name."""
    script, entry = ENTRIES[kind]
    parsed = parse_arguments(list(words), prog=script, example="", takes_weights=kind == "finetune")
    overrides = list(parsed.overrides)
    if kind == "finetune" and parsed.source is not None:
        overrides.append(override("init.from", parsed.source))
    resolved = load_complete(parsed.config, cluster=parsed.cluster, overrides=overrides, head=entry.head)
    return Training(script, list(words), resolved, entry.resolve(resolved))


def run_script(script: str) -> str:
    """The word after ``python`` that starts a rank: the script in a checkout, else ``-mMODULE``.

    A module, because the ranks may run in a container in which the product is installed elsewhere.
    """
    return script if Path(script).is_file() else "-m" + script.removesuffix(".py").replace("/", ".")


def choose_layout(training: Training, job: Job, spares: int, worlds: Sequence[int]) -> Layout:
    """The first start must use all GPUs, or it is rejected; a restart uses as many of its GPUs as fit the batch.

    The last ``spares`` nodes are not counted.

    Raises:
        ConfigError: the GPUs do not fit the batch at the first start, no number of them does, or all nodes are spare.
        DataError: no shards, or not the ones that the config describes.
    """
    experiment = training.experiment
    num_nodes = len(job.nodes) - spares
    if not 0 < num_nodes <= len(job.nodes):
        raise ConfigError(
            f"SPARE_NODES={spares} of {len(job.nodes)} nodes: it must be at least 0, and leave nodes to train on "
            "(sbatch --nodes asks for both)"
        )
    layout = Layout(num_nodes, job.gpus_per_node)
    if job.restart_count:
        fitting = largest_layout(worlds, num_nodes, job.gpus_per_node)
        if fitting is None:
            total = experiment.global_batch_size
            raise ConfigError(f"no number of ranks up to {layout.ranks} fits global_batch_size {total}")
        layout = fitting
    check(training.resolved, world=layout.ranks, require_data=True, backend=training.entry.backend)
    return layout


def refuse_a_held_folder(run: Path, job: Job) -> None:
    """Rejects another job that trains in the same folder early; later every rank would find it.

    Raises:
        SetupError: names the job.
    """
    if (owner := ownership.living_owner(run, patience_s=PATIENCE_S)) is not None and owner["job_id"] != job.job_id:
        raise SetupError(
            f"run folder {run} is in use by job {owner['job_id']} on {owner['host']}: "
            "wait for it, stop it (touch STOP in the folder), or choose another name"
        )


def shell_variables(training: Training, job: Job, layout: Layout, token: str, worlds: Sequence[int]) -> str:
    """Assignments that the job script evaluates."""
    experiment = training.experiment
    nodes = job.nodes[: layout.num_nodes]
    supervise = ["--run", str(training.run), "--nodes", *nodes, "--ranks-per-node", str(layout.ranks_per_node)]
    supervise += ["--worlds", *map(str, worlds)]
    splits = [*experiment.data.sources, *experiment.evaluation.sets.values()]
    places = [Location.parse(split.shards) for split in splits]
    folders = [place.base for place in places if not place.is_remote]  # the check tries the others
    probe = [
        "--run",
        str(training.run),
        "--token",
        token,
        *(word for folder in folders for word in ("--shards", folder)),
    ]
    probe += [
        "--memory-gib",
        str(HOST_GIB_PER_RANK * layout.ranks_per_node),
        "--space-gib",
        f"{space_gib(experiment):.3f}",
    ]
    values = {
        "RUN_FOLDER": str(training.run),
        "RUN_SCRIPT": run_script(training.script),
        f"export {RESTART_COUNT}": str(job.restart_count),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f"SUPERVISE_ARGUMENTS=({shlex.join(supervise)})")
    lines.append(f"TRAIN_ARGUMENTS=({shlex.join(training.arguments)})")
    lines.append(f"PROBE_ARGUMENTS=({shlex.join(probe)})")
    return "\n".join(lines)


def space_gib(experiment: Experiment) -> float:
    """GiB for the checkpoints of the run: those that are kept and the one that is being written."""
    if not cost_is_known(experiment.model):
        return 1.0
    # fp32 master weights, two optimiser states, the EMA weights, and both sets as plain weights
    size = 4 * 6 * num_parameters(experiment.model, experiment.num_outputs)
    return size * (experiment.checkpoint.keep_last + 1) / 2**30


def say(text: str) -> None:
    """Prints for the user on stderr, since stdout belongs to the job script."""
    print(text, file=sys.stderr, flush=True)
