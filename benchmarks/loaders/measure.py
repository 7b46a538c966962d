"""The process of one loader: it builds the loader and measures a stretch of it whenever it is told to.

A measurement first draws as many batches as may be ready, so that what is timed is the steady state; then it takes
the time and the CPU seconds of this process and its children for the batches that follow.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil

BATCH, SIZE = 64, 224
PREFETCH = 2  # batches per worker that may be ready
MIN_AREA = 0.05


def serve(name: str, make: Callable[[str, int], Iterable[Any]], count: Callable[[Any], int]) -> None:
    """Answers each line "N" on stdin with a line of JSON about N images; the arguments are a folder and workers.

    Args:
        name: of the loader.
        make: (folder, workers) → batches without end, or of one epoch, in which case they start again.
        count: images of a batch.
    """
    folder, workers = sys.argv[1], int(sys.argv[2])
    batches = _endless(make(folder, workers))
    count(next(batches))
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_measure(batches, count, int(line), (PREFETCH + 1) * max(1, workers))), flush=True)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _measure(batches: Iterator[Any], count: Callable[[Any], int], wanted: int, ready: int) -> dict[str, float]:
    for _ in range(ready):
        next(batches)
    images, cpu, started = 0, _cpu_seconds(), time.perf_counter()
    while images < wanted:
        images += count(next(batches))
    return {"images": images, "seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    """Of this process and all below it, those that have ended included."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
            total += _cpu_clock(process.pid) or times.user + times.system
        except psutil.NoSuchProcess:
            continue
        total += times.children_user + times.children_system
    return total


def _cpu_clock(process_id: int) -> float | None:
    """CPU seconds of a living process and its threads, to the nanosecond; None: this system has no such clock.

    psutil's figures are counted in ticks of 10 ms, in which ours makes ten images.

    Source: Linux, include/linux/posix-timers_types.h: the clock of a process is its inverted number and CPUCLOCK_SCHED.
    """
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime(~process_id << 3 | 2)
    except OSError:
        return None
