"""Command lines as a user types them, but in a clean environment, with a time limit, and never left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PASSED_ON = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "USER", "XDG_CACHE_HOME")
SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def clean_environment(**more: str) -> dict[str, str]:
    """Variables that the system needs, single-threaded CPU settings, and this interpreter first in PATH."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | SETTINGS | more
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return environment


class Commands:
    """Starts processes in sessions of their own, so that a whole tree can be killed."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def run(
        self,
        *arguments: str | Path,
        timeout_s: float = 280.0,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end.

        Args:
            *arguments: the command line; ``python`` is this interpreter.
            timeout_s: after this the process and its children are killed and the test fails with their output.
            env: variables added to the clean environment.
            cwd: working folder, the repository by default.
            check: fail, with the output, unless the command exits with 0.
        """
        process = self.start(*arguments, env=env, cwd=cwd)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            stdout, stderr = process.communicate()
            raise AssertionError(_report(f"still ran after {timeout_s} s", arguments, stdout, stderr)) from None
        if check and process.returncode:
            raise AssertionError(_report(f"exit code {process.returncode}", arguments, stdout, stderr))
        return subprocess.CompletedProcess([str(part) for part in arguments], process.returncode, stdout, stderr)

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT, **options: Any
    ) -> subprocess.Popen[str]:
        """Starts a command and returns at once; it is killed with its children when the test ends."""
        words = [str(part) for part in arguments]
        words[0] = sys.executable if words[0] == "python" else words[0]
        process = subprocess.Popen(
            words,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            errors="replace",
            cwd=cwd,
            env=clean_environment(**(env or {})),
            start_new_session=True,
            **options,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            kill_tree(process)
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # input that nobody has read
                        stream.close()


def kill_tree(process: subprocess.Popen[Any], number: int = signal.SIGKILL) -> None:
    """Sends a signal to every process of the session that ``process`` leads, also when the leader has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _report(what: str, arguments: Sequence[str | Path], stdout: str, stderr: str) -> str:
    line = " ".join(map(str, arguments))
    return f"{line}: {what}\n--- stdout\n{stdout[-6000:]}\n--- stderr\n{stderr[-6000:]}"
