"""Runs a loader in its own environment: converts sets, starts one process per rank, and collects what they drew."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.conformance.loaders import tars
from benchmarks.conformance.loaders.job import Job
from benchmarks.conformance.loaders.outcomes import Outcome, read_rank
from benchmarks.conformance.loaders.progress import PATIENCE_S, Progress, effort_of
from benchmarks.conformance.processes import end_session, free_port, is_running
from benchmarks.loaders.setup import ROOT, failure_of, python_of

LIMIT_CPU_S = 600  # of one run: CPU seconds, since a busy machine has no say in them
CONVERSION_S = 3600
OWN = "ours"


class NotInstalledError(Exception):
    """The loader's environment is missing."""


class TooSlowError(Exception):
    """The limit ended ranks that were still drawing batches."""


class System:
    """One loader.

    Args:
        name: of its adapter.
        work: folder for its sets and states.
        data: folder of the tars.
        limit_cpu_s: CPU seconds of one run.

    Attributes:
        cpu_s: CPU seconds of all runs so far.
    """

    def __init__(self, name: str, work: Path, data: Path, limit_cpu_s: float = LIMIT_CPU_S) -> None:
        self.name, self._work, self._data, self._limit_cpu_s = name, work / name, data, limit_cpu_s
        self._python = Path(sys.executable) if name == OWN else python_of(name)
        self._outcomes: dict[str, Outcome] = {}
        self.cpu_s = 0.0
        if not self._python.exists() or (name != OWN and failure_of(name).exists()):
            raise NotInstalledError(f"{name}: not installed: make bench-setup")
        self._work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The constants of the adapter and the version of its package."""
        return json.loads(self._call("describe").splitlines()[-1])

    def folder(self, name: str) -> Path:
        """A set in the loader's own form."""
        out, begun = self._work / name, self._work / f"{name}.new"
        if not out.exists():
            tars_of = self._data / name
            if not tars_of.exists():
                tars.write(tars_of, tars.SETS[name])
            shutil.rmtree(begun, ignore_errors=True)
            self._call("convert", str(tars_of), str(begun))
            begun.rename(out)
        return out

    def copied(self, name: str, purpose: str) -> Path:
        """A fresh copy of a set, with a name of its own: some loaders cache what they have read from a path."""
        copy = self._work / f"{name}-{purpose}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder(name), copy)
        return copy

    def run(
        self,
        *sets: str,
        folders: tuple[str, ...] = (),
        world: int = 1,
        patience_s: float = PATIENCE_S,
        **settings: Any,
    ) -> Outcome:
        """Runs a job on all ranks; the same one only once.

        Args:
            sets: names of the sets.
            folders: where they are, if not in ``folder``.
            world: ranks.
            patience_s: seconds without a batch after which idle ranks are hung.
            settings: the other fields of ``Job``.
        """
        job = Job(
            folders=folders or tuple(str(self.folder(name)) for name in sets),
            num_samples=sum(len(tars.SETS[name].numbers) for name in sets),
            num_shards=len(tars.SETS[sets[0]].sizes),
            world=world,
            states=str(self._work / "states" / "-".join(sets)),
            **settings,
        )
        key = job.dumps()
        if key not in self._outcomes:
            self._outcomes[key] = self._run(job, Progress(patience_s))
        return self._outcomes[key]

    def forget(self, outcome: Outcome) -> None:
        """Does not reuse an outcome, since the files that it depends on change."""
        self._outcomes = {key: kept for key, kept in self._outcomes.items() if kept is not outcome}

    def close(self) -> None:
        """Ends the loader's server."""
        if "_server" in self.__dict__:
            end_session(self._server.pid)
            self._server.wait()

    def _run(self, job: Job, progress: Progress) -> Outcome:
        port = free_port()
        started = [self._start(replace(job, rank=rank), port) for rank in range(job.world)]
        try:
            self._wait(started, progress)
            ended = [not is_running(process) for process in started]
        finally:
            for process in started:
                end_session(process)
        ranks = [read_rank(*self._files(rank)[1:]) for rank in range(job.world)]
        return Outcome([replace(rank, died=has and not rank.done) for rank, has in zip(ranks, ended, strict=True)])

    def _wait(self, started: list[int], progress: Progress) -> None:
        """Waits until all ranks have ended, or hang.

        Raises:
            TooSlowError: neither happened within the limit.
        """
        began, outcomes, used = time.monotonic(), [self._files(rank)[1] for rank in range(len(started))], 0.0
        try:
            while running := [process for process in started if is_running(process)]:
                effort = effort_of(running, outcomes)
                used = max(used, effort.cpu_s)
                if progress.is_hung(effort):
                    return
                if used > self._limit_cpu_s:
                    raise TooSlowError(f"a run used more than the limit of {self._limit_cpu_s:.0f} CPU seconds")
                time.sleep(0.2 if time.monotonic() - began < 5 else 1.0)
        finally:
            self.cpu_s += used

    def _start(self, job: Job, port: int) -> int:
        asked, out, log = self._files(job.rank)
        asked.write_text(job.dumps())
        out.write_text("")
        environment = self._environment(job.rank, job.world, port)
        order = {"job": str(asked), "out": str(out), "log": str(log), "environment": environment}
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
                self._command("serve"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=self._work,
                env=self._environment(),
                start_new_session=True,
            )

    def _files(self, rank: int) -> tuple[Path, Path, Path]:
        return tuple(self._work / f"rank-{rank}.{kind}" for kind in ("job.json", "out.jsonl", "log"))  # type: ignore[return-value]

    def _command(self, what: str) -> list[str]:
        return [str(self._python), "-W", "ignore", "-m", "benchmarks.conformance.loaders.process", what, self.name]

    def _environment(self, rank: int = 0, world: int = 1, port: int = 0) -> dict[str, str]:
        """As torchrun sets it on one node."""
        ranks = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        return {
            **os.environ,
            **{name: str(value) for name, value in ranks.items()},
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(self._work / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "WIDS_CACHE": str(self._work / "cache"),
        }

    def _call(self, what: str, *words: str) -> str:
        done = subprocess.run(
            [*self._command(what), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._work,
            env=self._environment(),
            timeout=CONVERSION_S,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {what} failed: {done.stderr[-2000:]}")
        return done.stdout
