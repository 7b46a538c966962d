"""Processes: which one this is, who started it and with which command line, and whether another one is alive.

A PID alone does not identify a process: PIDs repeat across machines, containers and time. A process is identified by
its kernel (boot id), its PID namespace (each container has one), its PID in it, and its start time in kernel ticks,
which no change of the wall clock moves. Whether it is alive can be determined only from the same namespace of the same
kernel.

When a launcher is killed (kill -9, out of memory), its ranks would keep running without a terminal or a job, so each
rank must notice and stop on its own.

Source: proc(5), pid_namespaces(7); the start is field 22 of /proc/PID/stat.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

LAUNCHERS = frozenset({"deepspeed", "torchrun", "accelerate", "srun", "mpirun"})
ADDED_BY_LAUNCHERS = ("--local_rank", "--local-rank")
STARTED_BY = "VIT_PRETRAIN_STARTED_BY"  # process id of a stage that starts runs, such as a sweep
ENDED = ("Z", "X")  # a killed process that its parent has not reaped is a zombie (Z); it counts as dead
_MODULES = frozenset(
    {
        "accelerate.commands.launch",
        "deepspeed.launcher.launch",
        "deepspeed.launcher.runner",
        "pipelines.k8s.node",
        "torch.distributed.launch",
        "torch.distributed.run",
    }
)


@dataclass(frozen=True)
class Identity:
    """A process. Values that the system does not provide (no /proc), or an older version did not write, are None.

    Attributes:
        host: name of its machine or container, for display.
        pid: its PID in its namespace.
        boot_id: the kernel's boot id.
        pid_namespace: the kernel's number of the namespace, which is reused after the namespace is gone.
        started: start time in clock ticks since boot.
    """

    host: str
    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    started: int | None = None

    @classmethod
    def own(cls) -> Identity:
        """This process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_text("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_link("/proc/self/ns/pid"),
            started=_stat("self")[1],
        )

    @classmethod
    def of(cls, values: dict[str, Any]) -> Identity:
        """Reads an identity from the content of a file."""
        return cls(
            host=str(values.get("host")),
            pid=int(values.get("pid", 0)),
            boot_id=values.get("boot_id"),
            pid_namespace=values.get("pid_namespace"),
            started=values.get("started"),
        )


def lives(process: Identity, own: Identity | None = None) -> bool | None:
    """Whether a process is alive; None: that cannot be determined from here.

    Args:
        process: the process to check.
        own: the caller; None: this process.
    """
    own = Identity.own() if own is None else own
    place, here = (process.boot_id, process.pid_namespace), (own.boot_id, own.pid_namespace)
    if None in place or None in here or process.started is None or place != here:
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it belongs to another user
    if _link("/proc/self") != str(os.getpid()):
        return None  # this /proc belongs to another namespace: its PIDs are other processes
    state, started = _stat(str(process.pid))
    if started is None:
        return None
    return started == process.started and state not in ENDED


@dataclass(frozen=True)
class Launcher:
    """A launcher: its name, its process id and its start time in kernel ticks since boot."""

    name: str
    pid: int
    started: str | None

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, including as a zombie that nobody has reaped yet."""
        return self.started is None or start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def launchers(env: Mapping[str, str] | None = None) -> list[Launcher]:
    """Every launcher above this process, and the stage that started it; empty if a user started it directly."""
    env = os.environ if env is None else env
    found = []
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if (name := launcher_name(process.cmdline())) is not None:
                found.append(Launcher(name, process.pid, start_of(process.pid)))
    if (stage := env.get(STARTED_BY, "")).isdigit():
        found.append(Launcher("the stage that started the run", int(stage), start_of(int(stage))))
    return found


def launcher_name(words: list[str]) -> str | None:
    """The launcher in a command line, or None: ``python -m torch.distributed.run``, ``/venv/bin/deepspeed``, …"""
    first = words[:5]
    for place, word in enumerate(first):
        if word == "-m" and place + 1 < len(first) and first[place + 1] in _MODULES:
            return first[place + 1]
        if place < 3 and Path(word).name in LAUNCHERS:
            return Path(word).name
    return None


def start_of(pid: int) -> str | None:
    """The start time of a process; None: it does not exist or is a zombie."""
    state, started = _stat(str(pid))
    if started is not None:
        return None if state in ENDED else str(started)
    if Path("/proc/self/stat").exists():
        return None
    with contextlib.suppress(OSError):  # not Linux
        os.kill(pid, 0)
        return ""
    return None


def started_at() -> float:
    """The start of this process in seconds since the epoch, to a tick (10 ms); psutil's is off by up to a second."""
    _, ticks = _stat("self")
    if ticks is None:  # not Linux
        return psutil.Process().create_time()
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def invocation() -> list[str]:
    """The command line that started this process, from its launcher on if there is one."""
    script = Path(sys.argv[0]).name
    for words in reversed([_words_of(parent) for parent in psutil.Process().parents()]):  # the outermost first
        typed = from_launcher(words)
        if typed and any(_script_of(word) == script for word in typed):
            return typed
    first, *others = without_rank(sys.argv)
    return ["python", first, *others] if first.endswith(".py") else [Path(first).name, *others]


def _script_of(word: str) -> str:
    """The file that a launcher runs for this word: a path, or a module (``-m pretrain.run``)."""
    return Path(word).name if word.endswith(".py") else f"{word.rpartition('.')[2]}.py"


def from_launcher(words: Sequence[str]) -> list[str]:
    """The command from the launcher's name on, as in ``[python, /venv/bin/deepspeed, …]``; empty if there is none."""
    for place, word in enumerate(words[:3]):
        if Path(word).name in LAUNCHERS:
            return [Path(word).name, *words[place + 1 :]]
    return []


def without_rank(words: Iterable[str]) -> list[str]:
    """The command line without the arguments that a launcher adds for each rank."""
    return [word for word in words if not word.startswith(ADDED_BY_LAUNCHERS)]


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package → version, for the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended, or belongs to another user
        return []


def _stat(process: str) -> tuple[str, int | None]:
    text = _text(f"/proc/{process}/stat")
    fields = [] if text is None else text.rsplit(")", 1)[-1].split()  # a name may contain spaces and parentheses
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", None)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
