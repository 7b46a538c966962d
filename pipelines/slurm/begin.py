"""``python -m pipelines.slurm begin -- ARGUMENTS``: the first command of a job, before any node starts to work.

Validates as much as possible, chooses the ranks, records the start in the run folder, and prints shell variables for
the job script on stdout; messages to the user go to stderr.
"""

from __future__ import annotations

import shlex
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.nodes.checks import token_path
from pipelines.slurm import scheduler, starts
from pipelines.slurm.layout import Layout, largest_layout
from pipelines.slurm.scheduler import Job
from pipelines.slurm.verdict import EXIT_GAVE_UP
from pretrain.check.experiment import check
from pretrain.config.loader import Resolved, load_experiment
from pretrain.config.overrides import override
from pretrain.config.schema.experiment import Experiment
from pretrain.data.order.order import allowed_worlds
from pretrain.data.sources import lanes_of
from pretrain.data.storage.location import Location
from pretrain.engine import ownership
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.models import budget
from pretrain.run import Entry, parse_arguments

HOST_GIB_PER_RANK = 1.0
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


def begin(kind: str, words: Sequence[str], limit: int) -> int:
    """Prints the job's variables; returns the exit code.

    Args:
        kind: pretrain or finetune.
        words: the arguments of the training.
        limit: restarts in a row that may bring no newer checkpoint.

    Raises:
        UserError: the config, the data or the number of GPUs is not usable.
    """
    training, job = read_training(kind, words), scheduler.current_job()
    step = starts.checkpoint_step(training.run)
    layout = choose_layout(training, job)
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
    before = starts.starts(training.run)
    starts.append(training.run, start)
    say(headline(start, before, layout))
    idle = starts.restarts_without_progress([*before, start], job.job_id, step)
    if idle > limit:
        say(f"gave up: {idle} restarts in a row without a newer checkpoint than step {step}")
        return EXIT_GAVE_UP
    token = uuid.uuid4().hex
    token_path(training.run).parent.mkdir(exist_ok=True)
    write_atomic(token_path(training.run), token)
    print(shell_variables(training, job, layout, token))
    return 0


def read_training(kind: str, words: Sequence[str]) -> Training:
    """The config that the arguments name; the job determines the number of devices."""
    script, entry = ENTRIES[kind]
    parsed = parse_arguments(list(words), prog=script, example="", takes_weights=kind == "finetune")
    overrides = [*parsed.overrides, "cluster.num_devices=auto"]
    if kind == "finetune" and parsed.source is not None:
        overrides.append(override("init.from", parsed.source))
    resolved = load_experiment(parsed.config, cluster=parsed.cluster, overrides=overrides)
    return Training(script, [*words, "cluster.num_devices=auto"], resolved, entry.resolve(resolved))


def choose_layout(training: Training, job: Job) -> Layout:
    """The first start must use all GPUs, or it is rejected; a restart uses as many of its GPUs as fit the batch.

    Raises:
        ConfigError: the GPUs do not fit the batch at the first start, or no number of them does.
        DataError: no shards, or not the ones that the config describes.
    """
    experiment = training.experiment
    layout = Layout(len(job.nodes), job.gpus_per_node)
    if job.restart_count:
        total = experiment.global_batch_size
        num_lanes = lanes_of(experiment)
        fitting = largest_layout(allowed_worlds(total, num_lanes, job.gpus), len(job.nodes), job.gpus_per_node)
        if fitting is None:
            raise ConfigError(f"no number of ranks up to {job.gpus} fits global_batch_size {total}")
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


def headline(start: starts.Start, before: Sequence[starts.Start], layout: Layout) -> str:
    """The first line of each start in the log, with the cost of idle GPUs."""
    number = sum(earlier.job_id == start.job_id for earlier in before) + 1
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.time))
    lines = [
        f"==== {when}  job {start.job_id}, start {number}: {layout.ranks} ranks on {layout.num_nodes} of "
        f"{len(start.nodes)} nodes ({', '.join(start.nodes)}), from step {start.step}"
    ]
    if start.ranks < start.gpus:
        lines.append(
            f"{start.gpus} GPUs do not fit the batch: {start.ranks} are used, {start.gpus - start.ranks} stay idle"
        )
    first = before[0].ranks if before else start.ranks
    if start.ranks < first:
        lines.append(f"{start.ranks} ranks instead of {first}: a step takes about {first / start.ranks:.3g} × as long")
    return "\n".join(lines)


def shell_variables(training: Training, job: Job, layout: Layout, token: str) -> str:
    """Assignments that the job script evaluates."""
    experiment = training.experiment
    nodes = job.nodes[: layout.num_nodes]
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
        "RUN_SCRIPT": training.script,
        "STEP_RANKS": str(layout.ranks),
        "STEP_NODES": str(layout.num_nodes),
        "STEP_RANKS_PER_NODE": str(layout.ranks_per_node),
        "STEP_NODELIST": ",".join(nodes),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append(f"TRAIN_ARGUMENTS=({shlex.join(training.arguments)})")
    lines.append(f"PROBE_ARGUMENTS=({shlex.join(probe)})")
    return "\n".join(lines)


def space_gib(experiment: Experiment) -> float:
    """GiB for the checkpoints of the run: those that are kept and the one that is being written."""
    if not budget.can_tell(experiment.model):
        return 1.0
    # fp32 master weights, two optimiser states, the EMA weights, and both sets as plain weights
    size = 4 * 6 * budget.num_parameters(experiment.model, experiment.num_outputs)
    return size * (experiment.checkpoint.keep_last + 1) / 2**30


def say(text: str) -> None:
    """Prints for the user on stderr, since stdout belongs to the job script."""
    print(text, file=sys.stderr, flush=True)
