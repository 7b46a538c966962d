"""The sections of a first light that all ranks measure together, started by torchrun: SECTION SPEC, the latter as JSON.

Each writes its answer to ``answer.json`` in the folder that the spec names as ``out``.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.nodes.compute import all_reduce_gb_per_s
from pretrain.assembly.record import work_of_step
from pretrain.assembly.trainer import build_trainer
from pretrain.config.loader import load_experiment
from pretrain.data.stream import TrainStream
from pretrain.distributed import startup
from pretrain.distributed.rank import Rank, detect, job
from pretrain.engine.boundary import StepClock
from pretrain.engine.loop import Trainer
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.session import Session
from pretrain.engine.state import TrainState
from pretrain.files import write_atomic
from pretrain.run import leave
from pretrain.sharding.choice import sharding_of
from pretrain.sharding.step import step_of

TIMEOUT_S = 300
PROFILED_STEPS = 5
SUMMED_BATCHES = 20  # checksums that wait on the device before the host reads them


@dataclass
class Section:
    """The inputs of a section: its spec, its rank and device, and the place of its answer."""

    spec: Mapping[str, Any]
    rank: Rank
    device: torch.device

    @property
    def out(self) -> Path:
        return Path(self.spec["out"])

    def answer(self, found: Mapping[str, Any]) -> None:
        """Writes what was found so far, on rank 0."""
        if self.rank.is_main:
            write_atomic(self.out / "answer.json", json.dumps(found))

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def throughput(section: Section) -> None:
    """Speed and memory of one model in several settings, with pixels decoded from shards. Collective: all ranks."""
    rows: list[dict[str, Any]] = []
    for case in section.spec["cases"]:
        row = {"case": case["name"]}
        if _is_over(section):
            rows.append({**row, "problem": "no time left"})
            continue
        try:
            row |= _measured(section, case)
        except Exception as error:  # out of memory is an answer; the next case may fit
            row["problem"] = f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0][:200]}"
        rows.append(row)
        section.answer({"rows": rows})
        gc.collect()
        if section.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_over(section: Section) -> bool:
    """Whether rank 0's clock says that the time is up: all ranks must agree. Collective: all ranks."""
    over = torch.tensor(float(time.time() > section.spec["deadline"]), device=section.device)
    dist.broadcast(over, src=0)
    return bool(over)


def _measured(section: Section, case: Mapping[str, Any]) -> dict[str, Any]:
    """One case: its rates, the share of data waits, its memory next to the plan's."""
    words = [*section.spec["settings"], *case["settings"], f"name={case['name'].replace(' ', '_')}"]
    resolved = load_experiment(section.spec["config"], overrides=words)
    experiment = resolved.experiment
    folder = RunFolder(Path(experiment.output_dir) / experiment.name)
    folder.open(section.rank, job())
    session = Session.of(section.rank, section.device, folder)
    trainer = build_trainer(resolved, session, kind="deepspeed", head="keep", start=None)
    steps = _Steps(trainer, section)
    try:
        row = steps.timed(section.spec["warm"], section.spec["steps"])
        images = experiment.global_batch_size / row["step_s"]
        row["images_per_s"] = round(images, 1)
        row["images_per_s_per_device"] = round(images / section.rank.world, 1)
        mfu = work_of_step(experiment, session).mfu(images)
        row["mfu"] = None if mfu is None else round(mfu, 4)
        if section.device.type == "cuda":
            row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        size = experiment.images_per_rank(section.rank.world) // trainer.cadence.accumulation_steps
        planned = sharding_of(experiment, "deepspeed").memory(step_of(experiment, section.rank.world, size)).peak
        row["planned_gib"] = round(planned / 2**30, 2)
        if case.get("profile"):
            row |= steps.profiled()
        return row
    finally:
        steps.close()
        folder.close(None, job(), writes=False)


class _Steps:
    """The steps of a trainer without evaluations and checkpoints."""

    def __init__(self, trainer: Trainer, section: Section) -> None:
        self._trainer, self._section = trainer, section
        self._state, self._clock = TrainState(), StepClock(section.device)
        self._batches = trainer.batches(self._state)
        self._loss = math.nan
        trainer.backend.train(True)

    def run(self, count: int) -> float:
        """That many steps; returns the seconds that this rank waited for data."""
        waited = 0.0
        for _ in range(count):
            self._state, _, _, boundary = self._trainer.step(self._state, self._batches, self._clock)
            self._loss = boundary.loss
            waited += max(boundary.times.waited_s)
        return waited

    def timed(self, warm: int, count: int) -> dict[str, Any]:
        """Seconds per step after a warm-up, and the share of them that the slowest rank waited for data."""
        if self._section.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        self.run(warm)
        self._section.wait()
        between = time.perf_counter()
        waited = self.run(count)
        self._section.wait()
        seconds = time.perf_counter() - between
        return {
            "warm_up_s": round(between - began, 1),
            "step_s": seconds / count,
            "data_wait": round(waited / seconds, 3),
            "loss_is_finite": math.isfinite(self._loss),
        }

    def profiled(self) -> dict[str, Any]:
        """How busy the GPU is in a steady step, and how often the host waits for it (torch's own detector)."""
        if self._section.device.type != "cuda":
            return {}
        waits: Counter[str] = Counter()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, category, file, line, *rest: waits.update([f"{file}:{line}"])
            torch.cuda.set_sync_debug_mode("warn")
            self.run(PROFILED_STEPS)
            torch.cuda.set_sync_debug_mode("default")
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            began = time.perf_counter()
            self.run(PROFILED_STEPS)
            self._section.wait()
            seconds = time.perf_counter() - began
        device = [event for event in profile.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA]
        spans = [(event.time_range.start, event.time_range.end) for event in device]
        return {
            "gpu_busy": round(union_length(spans) / 1e6 / seconds, 4),
            "kernels_per_step": len(spans) / PROFILED_STEPS,
            "host_waits_per_step": {place: count / PROFILED_STEPS for place, count in waits.most_common(20)},
        }

    def close(self) -> None:
        self._batches.close()
        self._trainer.telemetry.close()


def union_length(spans: list[tuple[float, float]]) -> float:
    """The length that intervals cover together."""
    covered, end = 0.0, -math.inf
    for first, last in sorted(spans):
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    return covered


def copies(section: Section) -> None:
    """Whether the pixels that arrive on a busy device are those that were sent.

    The copies are asynchronous and their host memory is lent to the next batch, so a mistake there would show as
    wrong pixels and nowhere else.
    """
    spec = section.spec
    experiment = load_experiment(spec["config"], overrides=spec["settings"]).experiment

    def sums(device: torch.device) -> list[int]:
        stream = TrainStream(experiment, section.rank.rank, section.rank.world, spec["batch"])
        side = 4096 if device.type == "cuda" else 64
        busy, kept, found = torch.randn(side, side, device=device), [], []
        for batch in stream.iterate(0, spec["batches"]):
            images = batch.to(device).images
            for _ in range(4):  # the copy must not be over when the host continues
                busy = (busy @ busy).clamp(-1, 1)
            weights = torch.arange(1, images.numel() + 1, device=device).view(images.shape)
            kept.append((images.to(torch.int64) * weights).sum())
            if len(kept) == SUMMED_BATCHES:
                found += torch.stack(kept).tolist()
                kept = []
        return found + [int(value) for value in kept]

    on_device, on_host = sums(section.device), sums(torch.device("cpu"))
    section.answer({"batches": len(on_device), "equal": on_device == on_host})


def all_reduce(section: Section) -> None:
    """Bus bandwidth of an all-reduce by size, and the time limit of every process group. Collective: all ranks."""
    from torch.distributed.distributed_c10d import _world

    world = section.rank.world
    rows = []
    for size in section.spec["bytes"]:
        rate = all_reduce_gb_per_s(section.device, num_bytes=size)
        rows.append({"mib": size / 2**20, "bus_gb_per_s": round(rate * 2 * (world - 1) / world, 2)})
        section.answer({"rows": rows})
    limits = {
        group.group_name: group._get_backend(section.device).options._timeout.total_seconds() for group in _world.pg_map
    }
    section.answer({"rows": rows, "timeouts_s": limits})


SECTIONS: dict[str, Callable[[Section], None]] = {"throughput": throughput, "copies": copies, "all_reduce": all_reduce}


def main() -> None:
    """Joins the other ranks, measures and leaves. Collective: all ranks."""
    name, spec = sys.argv[1], json.loads(sys.argv[2])
    rank = detect()
    device = startup.start(rank, timeout_s=TIMEOUT_S)
    Path(spec["out"]).mkdir(parents=True, exist_ok=True)
    SECTIONS[name](Section(spec, rank, device))
    dist.barrier()
    leave(0)


if __name__ == "__main__":
    main()
