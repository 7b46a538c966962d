"""What was typed to start this process (the launcher's words, where one stands between), and with which packages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import psutil

LAUNCHERS = frozenset({"deepspeed", "torchrun", "accelerate", "srun", "mpirun"})
ADDED_BY_LAUNCHERS = ("--local_rank", "--local-rank")


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
