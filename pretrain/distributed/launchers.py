"""How this process was started: its launchers, the command line and the installed packages.

When a launcher is killed (kill -9, out of memory), its ranks would keep running without a terminal or a job, so each
rank must notice and stop on its own. A process is identified by its id and its start time in kernel ticks, so neither a
reused id nor a changed wall clock is mistaken for the end of the launcher.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

LAUNCHERS = frozenset({"deepspeed", "torchrun", "accelerate", "srun", "mpirun"})
ADDED_BY_LAUNCHERS = ("--local_rank", "--local-rank")
STARTED_BY = "VIT_PRETRAIN_STARTED_BY"  # process id of a stage that starts runs, such as a sweep
_MODULES = frozenset(
    {
        "accelerate.commands.launch",
        "deepspeed.launcher.launch",
        "deepspeed.launcher.runner",
        "torch.distributed.launch",
        "torch.distributed.run",
    }
)


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
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        with contextlib.suppress(OSError):  # not Linux
            os.kill(pid, 0)
            return ""
        return None
    return None if state in "ZX" else fields[18]


def invocation() -> list[str]:
    """The command line that started this process, from its launcher on if there is one."""
    script = Path(sys.argv[0]).name
    for words in reversed([_words_of(parent) for parent in psutil.Process().parents()]):  # the outermost first
        typed = from_launcher(words)
        if typed and any(Path(word).name == script for word in typed):
            return typed
    return ["python", *without_rank(sys.argv)]


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
