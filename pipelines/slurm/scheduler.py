"""Queries and requests to Slurm, through its own commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.distributed.rank import RESTART_COUNT
from pretrain.errors import SetupError

COMMAND_TIMEOUT_S = 60.0
ALIVE = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
)
QUEUE_TIMEOUT_S = 10.0  # a user is waiting for the answer
UPDATE_TRIES, UPDATE_EVERY_S = 12, 0.25  # together less than the time that Slurm leaves an ended batch shell


@dataclass(frozen=True)
class Job:
    """The job that this process runs in; ``restart_count`` includes restarts inside its allocation."""

    job_id: str
    restart_count: int
    nodes: tuple[str, ...]
    gpus_per_node: int

    @property
    def gpus(self) -> int:
        return len(self.nodes) * self.gpus_per_node


def current_job() -> Job:
    """Reads Slurm's variables.

    Raises:
        SetupError: this is not a batch job.
    """
    try:
        job_id, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
    except KeyError as missing:
        raise SetupError(f"{missing.args[0]} is not set: this runs in a batch job, started with sbatch") from None
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    restarts = os.environ.get(RESTART_COUNT, os.environ.get("SLURM_RESTART_COUNT", "0"))
    return Job(job_id, int(restarts), host_names(nodes), int(per_node))


def host_names(node_list: str) -> tuple[str, ...]:
    """``node[1-2]`` → node1, node2."""
    return tuple(run(["scontrol", "show", "hostnames", node_list]).split())


def record(job_id: str) -> dict[str, str]:
    """Slurm's record of a job, by field; empty if Slurm no longer knows the job."""
    done = _command(["scontrol", "show", "job", "-o", job_id])
    return dict(re.findall(r"(?:^|\s)([A-Za-z:/_]+)=(\S*)", done.stdout)) if done.returncode == 0 else {}


def seconds_left(found: Mapping[str, str]) -> float:
    """Seconds until the time limit in a job's record; infinite if it has none."""
    try:
        return time.mktime(time.strptime(found.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S")) - time.time()
    except ValueError:  # Unknown
        return float("inf")


def queue_state(job: str) -> str:
    """Slurm's state of the job; empty if there is no Slurm, or it no longer knows the job."""
    if shutil.which("squeue") is None:
        return ""
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=QUEUE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def is_alive(job: str) -> bool:
    """Whether any task of a job is pending or running. Slurm forgets a job minutes after its end."""
    try:
        text = run(["scontrol", "show", "job", "-o", job])
    except SetupError as error:
        if "Invalid job id" in str(error):
            return False
        raise
    return any(f"JobState={state} " in text for state in ALIVE)


def submit(words: Sequence[str], name: str, environment: Mapping[str, str]) -> str:
    """The output of an sbatch command.

    Args:
        words: the command.
        name: of what is submitted, for messages.
        environment: variables that the job gets besides this process's.

    Raises:
        SetupError: sbatch is not installed, does not answer, or refuses the job.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, env={**os.environ, **environment}
        )
    except FileNotFoundError:
        raise SetupError("sbatch is not installed: submit from the cluster's login node (or use --dry-run)") from None
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"sbatch does not answer in {COMMAND_TIMEOUT_S:.0f} s: is the controller up? (scontrol ping)"
        ) from None
    if done.returncode:
        raise SetupError(f"{name}: {shlex.join(words)}\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def may_requeue(job_id: str) -> bool:
    """False if the job was cancelled, or Slurm is already ending or requeueing it.

    A job that is ended for its time limit may be requeued; ``scontrol requeue`` would bring back a cancelled one, too.
    """
    known = record(job_id)
    return known.get("JobState") == "RUNNING" or known.get("Reason") == "TimeLimit"


def requeue(job: Job, without: Sequence[str] = ()) -> None:
    """Puts the job back into the queue. Slurm then ends the batch shell, so ignore SIGTERM first.

    Args:
        job: this running batch job.
        without: nodes that it must not get again.

    Raises:
        SetupError: Slurm refused.
    """
    excluded = [*_excluded(job.job_id), *without]
    run(["scontrol", "requeue", job.job_id])
    changes = [*returning_with(job), *([f"ExcNodeList={','.join(excluded)}"] if without else [])]
    if not change_waiting(job.job_id, changes):
        raise SetupError(f"job {job.job_id} is requeued, but Slurm refused {' '.join(changes)}")


def returning_with(job: Job) -> list[str]:
    """The update that lets a requeued job restart with fewer nodes, if it was submitted with a range of them.

    (Slurm raises the number of tasks to that of the allocated nodes, and so requires as many the next time. It never
    goes below the range, nor below a fixed number of nodes.)
    """
    return [f"NumTasks={job.gpus_per_node}"]


def change_waiting(job_id: str, changes: Sequence[str]) -> bool:
    """Updates a job that is pending or about to be; False if it is not (it was cancelled, or is running)."""
    for _ in range(UPDATE_TRIES):
        if _command(["scontrol", "update", f"JobId={job_id}", *changes]).returncode == 0:
            return True
        time.sleep(UPDATE_EVERY_S)
    return False


def run(command: Sequence[str]) -> str:
    """The output of a Slurm command.

    Raises:
        SetupError: it is not installed, does not answer, or refuses.
    """
    done = _command(command)
    if done.returncode:
        raise SetupError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _excluded(job_id: str) -> list[str]:
    listed = record(job_id).get("ExcNodeList", "(null)")
    return [] if listed in ("", "(null)") else [listed]


def _command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not installed: this needs a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"{' '.join(command)} does not answer in {COMMAND_TIMEOUT_S:.0f} s") from None
