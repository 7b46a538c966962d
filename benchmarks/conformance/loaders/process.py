"""The processes of a loader, in its environment: they describe the adapter, convert a set, or run jobs.

An adapter is a module of ``adapters`` with

- ``DOCUMENTATION``: the pages that it follows, ``PACKAGE``: what is measured,
- ``NOT_OFFERED``: law → why the documentation does not promise it,
- ``convert(tars, out)``: makes the loader's own form of a folder of tars,
- ``Loader(job)``: ``epoch(number)`` yields (labels, uint8 images (b, 32, 32, 3)); ``state_dict()`` and
  ``load_state_dict(state)`` if it can be resumed, after which ``epoch`` yields the rest of that epoch; ``reports()``:
  optional, what it has to say about samples that it could not read.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.conformance.loaders import marks
from benchmarks.conformance.loaders.job import Job

MIB = 2**20
HELPERS = ("resource_tracker", "semaphore_tracker")  # processes of multiprocessing that load nothing


def describe(adapter: Any) -> dict[str, Any]:
    """The adapter's constants and the version of its package."""
    return {
        "version": importlib.metadata.version(adapter.PACKAGE),
        "package": adapter.PACKAGE,
        "documentation": adapter.DOCUMENTATION,
        "not_offered": adapter.NOT_OFFERED,
    }


class Run:
    """Draws the batches of a job and writes what it sees as lines of JSON."""

    def __init__(self, adapter: Any, job: Job, tell: Callable[[Any], None]) -> None:
        self._job, self._tell, self._drawn = job, tell, 0
        self._began, self._read, self._saved = _cpu_seconds(), _bytes_read(), {}
        self._loader = adapter.Loader(job)
        if job.load is not None:
            file = job.state_file(job.load)
            if not file.exists():  # there were fewer ranks
                file = file.with_name("rank-0.pickle")
            self._saved = pickle.loads(file.read_bytes())
            self._loader.load_state_dict(self._saved["state"])

    def draw(self) -> None:
        """All batches of the job."""
        first = self._saved.get("epoch", 0)
        for epoch in range(first, first + self._job.epochs):
            for labels, images in self._loader.epoch(epoch):
                self._take(epoch, [int(label) for label in labels], images)
                if self._drawn == self._job.stop_after:
                    return

    def reports(self) -> list[str]:
        """The messages of the loader about bad samples."""
        return list(getattr(self._loader, "reports", list)())

    def _take(self, epoch: int, labels: list[int], images: Any) -> None:
        job = self._job
        if not self._drawn:
            self._tell({"cpu_s": _cpu_seconds() - self._began, "read_mib": (_bytes_read() - self._read) / MIB})
        shown = marks.numbers(images)
        wrong = [label for label, number in zip(labels, shown, strict=True) if label != number]
        self._tell({"epoch": epoch, "labels": labels, "wrong": wrong})
        self._drawn += 1
        if self._drawn in job.save_at and hasattr(self._loader, "state_dict"):
            file = job.state_file(self._drawn)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pickle.dumps({"epoch": epoch, "state": self._loader.state_dict()}))
        if job.memory_every and self._drawn % job.memory_every == 0:
            self._tell({"memory_mib": _memory() / MIB, "after": self._drawn})
        if self._drawn == job.kill_after:
            self._tell({"killed": _kill_a_worker()})


def _tree() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _sum(measure: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in _tree():
        try:
            total += measure(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def _memory() -> float:
    """Private bytes of this process and those below it."""
    return _sum(lambda process: process.memory_full_info().uss)


def _cpu_seconds() -> float:
    return _sum(lambda process: sum(process.cpu_times()[:4]))


def _bytes_read() -> float:
    """Bytes that were asked for by read calls; mapped files are not counted."""
    return _sum(lambda process: process.io_counters().read_chars)


def _kill_a_worker() -> int | None:
    """Kills the process below this one that loads the most; returns its id, or None if there is none."""
    found = []
    for process in _tree()[1:]:
        if not process.children() and not any(name in " ".join(process.cmdline()) for name in HELPERS):
            found.append((sum(process.cpu_times()[:2]), process.pid))
    if not found:
        return None
    os.kill(max(found)[1], signal.SIGKILL)
    return max(found)[1]


def run(adapter: Any, asked: Path, out: Path) -> None:
    """Runs the job of a file and writes what was seen into another."""
    with out.open("w", encoding="utf-8") as lines:

        def tell(line: Any) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        try:
            made = Run(adapter, Job.loads(asked.read_text()), tell)
            made.draw()
            tell({"done": True, "reports": made.reports()})
        except Exception as error:  # whatever the loader raises is what is measured, a signal's error at the end too
            traceback.print_exc()
            sys.stderr.flush()
            tell({"error": f"{type(error).__name__}: {error}", "done": True})


def serve(adapter: Any) -> None:
    """Forks a process for each line {"job": …, "out": …, "log": …, "environment": …}, and answers with its id.

    So a loader's libraries are imported once, not once per rank and run.
    """
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if process:
            print(json.dumps({"process": process}), flush=True)
            continue
        os.setsid()
        os.environ.update(asked["environment"])
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(stream, number)
        _seed_anew()
        run(adapter, Path(asked["job"]), Path(asked["out"]))
        os._exit(0)  # the laws are about what was drawn, not about how long a loader takes to end


def _seed_anew() -> None:
    """Global generators as in a new process, not as in the one that was forked; Python's does so on its own."""
    np.random.seed(int.from_bytes(os.urandom(4), "big"))
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def main() -> None:
    """``describe NAME`` · ``convert NAME TARS OUT`` · ``serve NAME``."""
    what, name, *paths = sys.argv[1:]
    adapter: Any = importlib.import_module(f"benchmarks.conformance.loaders.adapters.{name}")
    if what == "describe":
        print(json.dumps(describe(adapter)))
    elif what == "convert":
        adapter.convert(*map(Path, paths))
    else:
        serve(adapter)


if __name__ == "__main__":
    main()
