"""How this process was started: the launchers above it, the words that were typed, and the installed packages.

When a launcher is gone, nothing is left to end the rank: it must stop itself. A launcher that is killed (kill -9,
memory) leaves its ranks behind, which would keep running without a terminal or a job. A process is known by its id and
the kernel's tick at which it started, so neither a reused id nor a changed wall clock is mistaken for an end.
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
    """One of them: its name, its process id and when it started, in the kernel's ticks since boot."""

    name: str
    pid: int
    started: str | None

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, also where nobody has taken notice of its end yet."""
        return self.started is None or start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def launchers(env: Mapping[str, str] | None = None) -> list[Launcher]:
    """Every launcher above this process, and the stage that started it; empty where a user did."""
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
    """The launcher that these words run, or None: ``python -m torch.distributed.run``, ``/venv/bin/deepspeed``, …"""
    first = words[:5]
    for place, word in enumerate(first):
        if word == "-m" and place + 1 < len(first) and first[place + 1] in _MODULES:
            return first[place + 1]
        if place < 3 and Path(word).name in LAUNCHERS:
            return Path(word).name
    return None


def start_of(pid: int) -> str | None:
    """When a process started; None: there is none, or it has ended and only its entry is left."""
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
    """The words of the command that started this process, from the launcher on if there is one."""
    script = Path(sys.argv[0]).name
    for words in reversed([_words_of(parent) for parent in psutil.Process().parents()]):  # the outermost first
        typed = from_launcher(words)
        if typed and any(Path(word).name == script for word in typed):
            return typed
    return ["python", *without_rank(sys.argv)]


def from_launcher(words: Sequence[str]) -> list[str]:
    """The command from the launcher's name on; empty where there is none. ``[python, /venv/bin/deepspeed, …]`` has."""
    for place, word in enumerate(words[:3]):
        if Path(word).name in LAUNCHERS:
            return [Path(word).name, *words[place + 1 :]]
    return []


def without_rank(words: Iterable[str]) -> list[str]:
    """The words without what a launcher adds for each rank."""
    return [word for word in words if not word.startswith(ADDED_BY_LAUNCHERS)]


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
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
    except psutil.Error:  # it has ended, or belongs to somebody else
        return []
