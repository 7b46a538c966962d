"""The processes of a trainer, in its environment: they describe the adapter, or are a rank.

An adapter is a module of ``adapters`` with

- ``PACKAGE``: what is measured, ``DOCUMENTATION``: the pages that it follows,
- ``NOT_OFFERED``: law → why the documentation does not promise it,
- ``LAUNCHER``: the words of the documented launcher for two ranks before ``MODULE ARGUMENTS``; {port} is a free
  port and {python} the interpreter,
- ``NEWEST``: patterns of the files of the checkpoint of step 8, below the folder of a job,
- ``train(job, probe)``: trains from the newest checkpoint in ``job.folder``, or from the start: in each step the loss
  goes through ``probe.poisoned``, and ``probe.after`` is called after the update and before a save.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from typing import Any

from benchmarks.conformance.trainers.job import VARIABLE, Job, Probe

MODULE = "benchmarks.conformance.trainers.process"


def describe(adapter: Any) -> dict[str, Any]:
    """The adapter's constants and the version of its package."""
    return {
        "version": importlib.metadata.version(adapter.PACKAGE),
        "package": adapter.PACKAGE,
        "documentation": adapter.DOCUMENTATION,
        "not_offered": adapter.NOT_OFFERED,
        "launcher": adapter.LAUNCHER,
        "newest": adapter.NEWEST,
    }


def run(adapter: Any) -> int:
    """Trains as the rank of this process; returns its exit code."""
    job = Job.of_process()
    probe = Probe(job)
    try:
        adapter.train(job, probe)
        probe.tell({"done": True})
    except BaseException as error:  # whatever the trainer raises; that of PyTorch's checkpoints is not an Exception
        traceback.print_exc()
        probe.tell({"error": f"{type(error).__name__}: {error}"[:2000]})
        return 1
    return 0


def serve(adapter: Any) -> None:
    """Forks a rank for each line {"job": …, "log": …, "environment": …}, and answers with its process id.

    So a trainer's libraries are imported once, not once per rank and run.
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
        os.environ.update(asked["environment"], **{VARIABLE: asked["job"]})
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(stream, number)
        code = run(adapter)
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """``describe NAME`` · ``serve NAME`` · ``run NAME``, the last by a launcher."""
    what, name = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    adapter: Any = importlib.import_module(f"benchmarks.conformance.trainers.adapters.{name}")
    if what == "describe":
        print(json.dumps(describe(adapter)))
    elif what == "serve":
        serve(adapter)
    else:
        sys.exit(run(adapter))


if __name__ == "__main__":
    main()
