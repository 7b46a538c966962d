"""A real Slurm on this machine: munged, slurmctld and one slurmd per node on loopback, with GPUs that are only files.

Everything runs in namespaces of its own. The processes share one PID namespace, so that the end of its first process
ends every daemon and every job, also when the tests are killed; /etc/hosts is replaced in a mount namespace only, so
that nothing is ever written below /etc. Each node has a /dev/shm of its own, whose content is lost with the node.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tests.command import ROOT, clean_environment

NODES = 4
GPUS_PER_NODE = 8
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "srun", "munged", "unshare", "setpriv")
NAMESPACES = ("--mount", "--uts", "--pid", "--fork", "--mount-proc")
READY_S = 60.0
T = TypeVar("T")
POLL_S = 0.2
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=controller(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,defer_batch=0
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs=128 RealMemory=8000 "
    "Gres=gpu:{gpus} State=UNKNOWN\n"
)
# The first process of the namespaces; the others are its children and end with it.
BOOT = """\
set -e
mount --bind "$FOLDER/hosts" /etc/hosts
hostname controller
cd "$FOLDER"
munged --force --foreground --num-threads 2 --key-file "$FOLDER/munge.key" --socket "$FOLDER/munge.socket" \\
    --pid-file "$FOLDER/munge.pid" --log-file "$FOLDER/munge.log" --seed-file "$FOLDER/munge.seed" &
until [ -S "$FOLDER/munge.socket" ]; do sleep 0.05; done
slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 &
for node in $NODES; do
    while :; do
        [ -e "$FOLDER/down-$node" ] ||
            unshare --uts --mount sh -c "hostname $node && mount -t tmpfs memory /dev/shm &&
                exec slurmd -D -f '$SLURM_CONF' -N $node" || true
        sleep 0.2
    done >/dev/null 2>&1 &
done
wait
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root (nodes are namespaces); run make test-slurm as root, in a container"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed; make test-slurm installs Debian's packages"
    probe = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True)
    return "this machine allows no namespaces (unshare failed)" if probe.returncode else None


class Cluster:
    """The running Slurm; commands are given as a user on the login node gives them.

    Args:
        folder: for its files.
        num_nodes: its nodes.
        requeue_s: seconds that a requeued job waits at least; Slurm's default is 120.
    """

    def __init__(self, folder: Path, *, num_nodes: int = NODES, requeue_s: int = 5) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self._requeue_s = requeue_s
        self.site = folder / "site.sh"
        self._write_files()
        variables = {"FOLDER": str(folder), "SLURM_CONF": str(self.configuration), "NODES": " ".join(self.nodes)}
        with open(folder / "boot.log", "wb") as boot_log:
            self._process = subprocess.Popen(
                # setpriv: a test session that is killed takes the namespaces with it
                ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--kill-child=KILL", "sh", "-c", BOOT],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=boot_log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def close(self) -> None:
        """Ends every daemon and every job at once."""
        self._process.kill()
        self._process.wait()

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command on the login node, from the repository's root."""
        words = tuple(sys.executable if word == "python" else word for word in words)
        done = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=clean_environment(
                **{"SLURM_CONF": str(self.configuration), "SITE_FILE": str(self.site), **(env or {})}
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, *words: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Sbatch with these words; returns the job id. The output goes to ``log(job)``."""
        output = (
            f"--output={self.folder}/%j.out" if "--array" not in str(words) else f"--output={self.folder}/%A_%a.out"
        )
        return self.run("sbatch", "--parsable", output, *words, env=env).stdout.strip()

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """The fields that scontrol shows for a job."""
        text = self.run("scontrol", "show", "job", "-o", job).stdout
        return dict(re.findall(r"(?:^| )([A-Za-z:/_]+)=(\S*)", text))

    def wait(self, job: str, *, timeout_s: float = 300) -> dict[str, str]:
        """Waits for the job's end, requeues included; returns its last record."""
        return self.until(
            lambda: record if (record := self.show(job))["JobState"] in FINISHED else None,
            f"job {job} to end",
            job,
            timeout_s=timeout_s,
        )

    def until(
        self,
        happened: Callable[[], T | None],
        what: str,
        job: str = "",
        *,
        timeout_s: float = 300,
        every_s: float = POLL_S,
    ) -> T:
        """Polls until ``happened`` returns something true; fails with the job's log."""
        deadline = time.monotonic() + timeout_s
        while not (result := happened()):
            if time.monotonic() > deadline:
                shown = ("job", job) if job else ("node",)
                state = self.run("scontrol", "show", *shown, check=False).stdout
                raise AssertionError(f"waited {timeout_s} s for {what}\n{state}\n{self.log(job)[-6000:]}")
            time.sleep(every_s)
        return result

    def kill_node(self, node: str) -> None:
        """Kills everything on a node at once, as a power cut does; it stays down until ``boot_node``."""
        (self.folder / f"down-{node}").touch()
        (daemon,) = (pid for pid in _pids() if _is_daemon(pid, self.configuration, node))
        host = os.readlink(f"/proc/{daemon}/ns/uts")
        for pid in _pids():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/uts") == host:
                    os.kill(pid, signal.SIGKILL)

    def boot_node(self, node: str) -> None:
        """Starts a killed node again."""
        (self.folder / f"down-{node}").unlink(missing_ok=True)

    def cancel_all(self) -> None:
        """Ends all jobs and waits until every node is idle again."""
        for node in self.nodes:
            self.boot_node(node)
        self.run("scancel", "--user=root", check=False)
        for node in self.nodes:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.until(self._all_idle, "idle nodes", timeout_s=60)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %t", check=False).stdout.split("\n")
        return sorted(line for line in states if line) == [f"{node} idle" for node in self.nodes]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._all_idle():
            if time.monotonic() > deadline or self._process.poll() is not None:
                logs = [path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.log"))]
                raise AssertionError("Slurm does not come up:\n" + "\n".join(logs))
            time.sleep(POLL_S)

    def _write_files(self) -> None:
        for name in ("state", "devices", "bin", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        for number in range(GPUS_PER_NODE):  # /dev/null under another name: Slurm wants a character device
            os.mknod(self.folder / "devices" / f"nvidia{number}", 0o20666, os.makedev(1, 3))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = iter(_free_ports(len(self.nodes) + 1))
        text = CONFIGURATION.format(folder=self.folder, controller_port=next(ports), requeue_s=self._requeue_s)
        hosts = "127.0.0.1 localhost controller\n"
        for number, node in enumerate(self.nodes):
            address = f"127.0.0.{11 + number}"
            text += NODE.format(name=node, address=address, port=next(ports), gpus=GPUS_PER_NODE)
            hosts += f"{address} {node}\n"
        self.configuration.write_text(text)
        (self.folder / "hosts").write_text(hosts)
        devices = f"{self.folder}/devices/nvidia[0-{GPUS_PER_NODE - 1}]"
        gres = f"AutoDetect=off\nNodeName=node[1-{len(self.nodes)}] Name=gpu File={devices}\n"
        (self.folder / "gres.conf").write_text(gres)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_daemon(pid: int, configuration: Path, node: str) -> bool:
    """Whether it is the slurmd of a node of this cluster."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return Path(words[0]).name == "slurmd" and str(configuration) in words and node in words


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
