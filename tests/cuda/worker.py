"""Runs cases on simulated GPUs in a process of their own: ``python -m tests.cuda.worker GROUP [CASE …]``.

Prints one JSON object: case → its waits, its collectives, its graphs, and the error that ended it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.cuda import events, graphs, jobs, layouts, steps
from tests.cuda.record import Record
from tests.cuda.simulation import simulated


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases that can share a process.

    Attributes:
        cases: name → settings.
        run: (settings, device) → the record of the case.
        world: ranks of the job.
        devices: the context that gives the device, for a number of ranks.
    """

    cases: dict[str, Any]
    run: Callable[[Any, torch.device], Record]
    world: int
    devices: Callable[[int], contextlib.AbstractContextManager[torch.device]] = simulated


@contextlib.contextmanager
def _the_cpu(world: int) -> Iterator[torch.device]:
    """This process as the only rank of a job on the CPU."""
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {**one, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=world)
    yield torch.device("cpu")


GROUPS = {
    "events": Group(events.CASES, events.record_of, 2),
    "steps": Group(steps.CASES, steps.second_step, 2),
    "jobs": Group(jobs.CASES, jobs.record_of, jobs.WORLD),
    "graphs": Group(graphs.CASES, graphs.record_of, graphs.WORLD, _the_cpu),
    "layouts": Group(layouts.CASES, layouts.record_of, layouts.WORLD),
}


def result(group: Group, case: str, device: torch.device) -> dict[str, Any]:
    """The record of a case, or its error with the end of its traceback."""
    try:
        record = group.run(group.cases[case], device)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=-12)}
    waits = {f"{kind} in {place}": count for (kind, place), count in sorted(record.waits.items())}
    return {"waits": waits, "collectives": record.collectives, "graphs": record.graphs, "error": None}


def main(name: str, *cases: str) -> None:
    """Runs the cases, or all of the group."""
    warnings.simplefilter("ignore")  # the warnings of real runs are tested elsewhere
    group, answer = GROUPS[name], os.dup(1)
    os.dup2(2, 1)  # what a run prints is not the answer
    with group.devices(group.world) as device:
        results = {case: result(group, case, device) for case in cases or group.cases}
        os.write(answer, json.dumps(results).encode())
    os._exit(0)  # torch's own way out would look for a driver


if __name__ == "__main__":
    main(*sys.argv[1:])
