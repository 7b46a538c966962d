"""Runs a trainer: starts its ranks, injects the faults of a job, and collects what was reported."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conformance.loaders.system import NotInstalledError, TooSlowError
from benchmarks.conformance.processes import end_session, free_port, is_running
from benchmarks.conformance.trainers import INSTALLED
from benchmarks.conformance.trainers.job import VARIABLE, Job
from benchmarks.conformance.trainers.outcomes import Outcome, read_rank
from benchmarks.conformance.trainers.process import MODULE
from benchmarks.loaders.setup import ROOT, failure_of, python_of

LIMIT_S = 600  # of one run
GRACE_S = 30  # after a rank failed: a launcher would have ended the others
AGENT = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
KILL_AT = 10  # between the saves at 8 and 12


class System:
    """One trainer.

    Args:
        name: of its adapter.
        work: folder for its checkpoints and logs.
        limit_s: of one run.
    """

    def __init__(self, name: str, work: Path, limit_s: float = LIMIT_S) -> None:
        self.name, self._work, self._limit_s = name, work / name, limit_s
        own = name in INSTALLED
        self._python = Path(sys.executable) if own else python_of(name)
        if not self._python.exists() or (not own and failure_of(name).exists()):
            raise NotInstalledError(f"{name}: not installed: make bench-setup")
        self._work.mkdir(parents=True, exist_ok=True)
        self._runs = 0

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The constants of the adapter and the version of its package."""
        done = subprocess.run(
            self._command("describe"), capture_output=True, text=True, check=False, cwd=ROOT, env=self._environment()
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr[-1000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    @cached_property
    def full(self) -> Outcome:
        """The uninterrupted run of two ranks.

        Raises:
            RuntimeError: it did not come to its end.
        """
        outcome = self.run(self._fresh("full"))
        if outcome.problem:
            raise RuntimeError(f"the uninterrupted run failed: {outcome.problem}")
        return outcome

    @cached_property
    def killed(self) -> Path:
        """The folder of a run of two ranks that was killed in step 10: it has the checkpoints of steps 4 and 8."""
        folder = self._fresh("killed")
        outcome = self.run(folder, hold_at=KILL_AT)
        if not all(rank.held for rank in outcome.ranks):
            raise RuntimeError(f"the run to be killed failed: {outcome.problem}")
        return folder

    def copied(self, purpose: str) -> Path:
        """A copy of the killed run; an earlier copy is removed."""
        folder = self.killed
        copy = self._fresh(purpose)
        shutil.copytree(folder, copy, dirs_exist_ok=True, symlinks=True)
        return copy

    def empty(self, purpose: str) -> Path:
        """A new folder for a run."""
        return self._fresh(purpose)

    def run(self, folder: Path, world: int = 2, **faults: Any) -> Outcome:
        """Runs a job, each rank with the variables that torchrun sets.

        Raises:
            TooSlowError: its ranks neither ended nor hung within the limit.
        """
        out = self._new_out()
        job, port = Job(folder=str(folder), out=str(out), **faults), free_port()
        started = [self._start(job, out, self._environment(rank, world, port)) for rank in range(world)]
        try:
            self._wait(started, out)
        finally:
            for process in started:
                end_session(process)
        log = "".join(path.read_text(errors="replace") for path in sorted(out.glob("*.log")))
        return Outcome([read_rank(out / f"rank-{rank}.jsonl") for rank in range(world)], log)

    def launch(self, folder: Path, **faults: Any) -> Outcome:
        """Runs a job on two ranks through the documented launcher, and waits until all its processes have ended."""
        out = self._new_out()
        words = [word.format(port=free_port(), python=self._python) for word in self.facts["launcher"]]
        environment = self._environment() | {VARIABLE: Job(folder=str(folder), out=str(out), **faults).dumps()}
        with (out / "launcher.log").open("wb") as log:
            process = subprocess.Popen(
                [*words, MODULE, "run", self.name], stdout=log, stderr=log, cwd=ROOT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        try:
            ended = self._wait_for_tree(process)
        finally:
            end_session(process.pid)
        text = (out / "launcher.log").read_text(errors="replace")
        ranks = [read_rank(out / f"rank-{rank}.jsonl") for rank in range(2)]
        return Outcome(ranks, text, process.returncode, ended)

    def close(self) -> None:
        """Ends the trainer's server."""
        if "_server" in self.__dict__:
            end_session(self._server.pid)
            self._server.wait()

    def _fresh(self, purpose: str) -> Path:
        folder = self._work / purpose
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _new_out(self) -> Path:
        self._runs += 1
        return self._fresh(f"out-{self._runs}")

    def _wait(self, started: Sequence[int], out: Path) -> None:
        """Waits until all ranks have ended or wait to be killed, or the others had time to follow a failed one."""
        began, failed = time.monotonic(), 0.0
        while time.monotonic() - began < self._limit_s:
            ranks = [read_rank(out / f"rank-{rank}.jsonl") for rank in range(len(started))]
            running = [is_running(process) for process in started]
            if not any(running) or all(rank.held for rank in ranks):
                return
            if not failed and any(not runs and not rank.done for runs, rank in zip(running, ranks, strict=True)):
                failed = time.monotonic()
            if failed and time.monotonic() - failed > GRACE_S:
                return
            time.sleep(0.1)
        raise TooSlowError(f"a run took longer than the limit of {self._limit_s:.0f} s")

    def _wait_for_tree(self, process: subprocess.Popen[bytes]) -> float | None:
        """The time at which a launcher and all processes of its session had ended; None: not within the limit."""
        began, seen = time.monotonic(), set[int]()
        while time.monotonic() - began < self._limit_s:
            with contextlib.suppress(psutil.NoSuchProcess):
                seen |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
            if process.poll() is not None and not any(map(is_running, seen)):
                return time.time()
            time.sleep(0.1)
        for one in seen:
            end_session(one)
        return None

    def _start(self, job: Job, out: Path, environment: dict[str, str]) -> int:
        log = out / f"rank-{environment['RANK']}.log"
        order = {"job": job.dumps(), "log": str(log), "environment": environment}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        for line in self._server.stdout:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return json.loads(line)["process"]
        raise RuntimeError(f"{self.name}: its server ended: {self._server_log.read_text()[-2000:]}")

    @property
    def _server_log(self) -> Path:
        return self._work / "server.log"

    @cached_property
    def _server(self) -> subprocess.Popen[str]:
        with self._server_log.open("wb") as errors:
            return subprocess.Popen(
                self._command("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                cwd=ROOT, env=self._environment(), start_new_session=True,
            )  # fmt: skip

    def _command(self, what: str) -> list[str]:
        return [str(self._python), "-W", "ignore", "-m", MODULE, what, self.name]

    def _environment(self, rank: int | None = None, world: int = 1, port: int = 0) -> dict[str, str]:
        """As torchrun sets it on one node; without a rank, as before a launcher."""
        ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        own = {} if rank is None else {name: str(value) for name, value in ranks.items()} | AGENT
        paths = f"{self._python.parent}:{os.environ['PATH']}"
        common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": paths, "DS_ACCELERATOR": "cpu"}
        return {**os.environ, **common, **own}
