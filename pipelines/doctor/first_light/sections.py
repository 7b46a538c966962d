"""The procedure of a first light: its data, its sections in the order of their importance, and the measured ones."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.doctor.first_light import jobs
from pipelines.doctor.first_light.bench import Bench
from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pipelines.sources.sample_photos import write_photos
from pretrain.errors import SetupError

NUM_PHOTOS, NUM_TINY_PHOTOS = 512, 32
MIB = 1 << 20


@dataclass(frozen=True)
class Part:
    """One section.

    Attributes:
        name: of its finding.
        run: measures it.
        least_s: seconds that it needs on a GPU; with less left it is skipped.
        least_ranks: ranks that it needs.
        on_cpu: whether CPU ranks can try it.
    """

    name: str
    run: Callable[[Bench], Finding]
    least_s: float
    least_ranks: int = 1
    on_cpu: bool = True


def first_light(bench: Bench) -> Iterator[Finding]:
    """Packs the data and runs every section that fits the machine and the time; each finding is on disk when it comes.

    Raises:
        SetupError: the data cannot be packed.
    """
    _pack(bench)
    for part in PARTS:
        finding = _skipped(part, bench)
        if finding is None:
            began = time.monotonic()
            finding = part.run(bench)
            finding.values["seconds"] = round(time.monotonic() - began, 1)
        bench.add(finding)
        yield finding


def _skipped(part: Part, bench: Bench) -> Finding | None:
    """The finding of a section that is not run; None if it is."""
    if bench.ranks < part.least_ranks:
        return Finding(part.name, AMBER, f"not measured: it needs {part.least_ranks} GPUs", values={"skipped": True})
    if not bench.gpus and not part.on_cpu:
        return Finding(part.name, AMBER, "not measured: it needs a GPU", values={"skipped": True})
    if bench.left_s < part.least_s * (not bench.tiny):
        remedy = "give it more time with --minutes"
        return Finding(part.name, AMBER, "not measured: no time left", remedy, values={"skipped": True})
    return None


def _pack(bench: Bench) -> None:
    """Digits for the trainings, photos for the measurements of speed."""
    photos = bench.out / "photos"
    write_photos(photos, NUM_TINY_PHOTOS if bench.tiny else NUM_PHOTOS)
    _stage("pack", "digits", "--classes", "0-4", "--holdout", "0.2", "--out", str(bench.out / "digits"))
    _stage("pack", "folder", str(photos), "--out", str(bench.out / "shards"))


def _stage(*words: str) -> None:
    command = [sys.executable, "-m", "pipelines", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} left with {done.returncode}:\n{done.stderr[-2000:]}")


def _cases(bench: Bench) -> list[dict[str, Any]]:
    """Settings of the measurements of speed: policy × compile × overlap × stage × precision, one change at a time."""
    overlap = 'cluster.deepspeed={"zero_optimization": {"overlap_comm": %s}}'
    cases = {
        "plain": [],
        "compiled": ["cluster.compile=true"],
        "selective": ["cluster.activation_checkpointing=selective"],
        "full": ["cluster.activation_checkpointing=full"],
        "full compiled": ["cluster.activation_checkpointing=full", "cluster.compile=true"],
        "no overlap": [overlap % "false"],
        "zero2": ["cluster.zero_stage=2"],
        "zero3": ["cluster.zero_stage=3"],
        "autocast": ["precision=autocast"],
    }
    if bench.tiny:
        cases = {name: cases[name] for name in ("plain", "full")}
    return [{"name": name, "settings": words, "profile": name == "plain"} for name, words in cases.items()]


def _photos(bench: Bench) -> list[str]:
    """Settings that train a recipe on the packed photos, without evaluations."""
    return [
        f"data.shards={bench.out / 'shards'}/train",
        f"data.num_samples={NUM_TINY_PHOTOS if bench.tiny else NUM_PHOTOS}",
        "data.num_classes=2",
        "evaluation.sets=null",
        "evaluation.every=null",
        "telemetry.tensorboard=false",
    ]


def _speed(bench: Bench, name: str, config: str, batch: int) -> Finding:
    """Throughput and MFU of a recipe's model with photos from shards, in every case that the time allows."""
    tiny = ["model.variant=nano/4", "model.img_size=16", "cluster.num_workers=1"] if bench.tiny else []
    batch = 4 if bench.tiny else batch
    settings = [
        *tiny,
        *_photos(bench),
        f"output_dir={bench.out / 'speed' / name}",
        "precision=bf16",
        "cluster.zero_stage=1",
        "model.dropout=0",
        f"cluster.micro_batch_size={batch}",
        f"global_batch_size={batch * bench.ranks}",
    ]
    spec = {
        "name": name,
        "config": config,
        "settings": settings,
        "cases": _cases(bench),
        "warm": 2 if bench.tiny else 6,
        "steps": 3 if bench.tiny else 20,
        "deadline": time.time() + (600 if bench.tiny else max(30.0, bench.left_s - 45)),
    }
    return _judged(f"speed_{name}", bench.in_ranks("throughput", spec), batch)


def _judged(probe: str, found: dict[str, Any], batch: int) -> Finding:
    """The finding of a measurement of speed: its best case, and which cases failed."""
    rows = [row for row in found.get("rows", []) if "problem" not in row]
    failed = [f"{row['case']} ({row['problem']})" for row in found.get("rows", []) if "problem" in row]
    if not rows:
        return Finding(probe, RED, found.get("problem") or "; ".join(failed), "see sections/*/output.txt", found)
    best = max(rows, key=lambda row: row["images_per_s"])
    text = f"{best['images_per_s_per_device']:,.0f} images/s per device ({best['case']}, batch {batch})"
    if best["mfu"] is not None:
        text += f", {best['mfu']:.1%} MFU"
    if "gpu_busy" in rows[0]:
        text += f"; the GPU is busy {rows[0]['gpu_busy']:.0%} of the time ({rows[0]['case']})"
    if failed:
        return Finding(probe, AMBER, f"{text}; not measured: {', '.join(failed)}", values=found)
    return Finding(probe, GREEN, text, values=found)


def _copies(bench: Bench) -> Finding:
    """Pixels that arrive by asynchronous copies."""
    batch, workers = (8, 1) if bench.tiny else (64, 4)
    spec = {
        "config": "recipe:vit_l16_i21k_90ep",
        "batch": batch,
        "batches": 8 if bench.tiny else 60,
        "settings": [*_photos(bench), f"global_batch_size={batch}", f"cluster.num_workers={workers}"],
    }
    found = bench.in_ranks("copies", spec, ranks=1)
    if not found.get("equal"):
        return Finding("copies", RED, found.get("problem", "pixels on the device differ"), "report it", found)
    return Finding("copies", GREEN, f"{found['batches']} batches arrive on the device as they were sent", values=found)


def _all_reduce(bench: Bench) -> Finding:
    """Bandwidth between the devices, and the limits of the process groups."""
    sizes = [MIB] if bench.tiny else [MIB, 16 * MIB, 256 * MIB, 1024 * MIB]
    found = bench.in_ranks("all_reduce", {"bytes": sizes})
    if "timeouts_s" not in found:
        return Finding("all_reduce", RED, found.get("problem", "no answer"), "run it with NCCL_DEBUG=INFO", found)
    best = max(row["bus_gb_per_s"] for row in found["rows"])
    return Finding("all_reduce", GREEN, f"{bench.ranks} ranks: {best:,.3g} GB/s on the bus at best", values=found)


def _l16(bench: Bench) -> Finding:
    return _speed(bench, "l16", "recipe:vit_l16_i21k_90ep", 128)


def _h14(bench: Bench) -> Finding:
    return _speed(bench, "h14", "recipe:vit_h14_jft300m", 64)


PARTS = (
    Part("layouts", jobs.first_layouts, 60),
    Part("resume", jobs.resume, 60),
    Part("watchdog", jobs.watchdog, 45, least_ranks=2),
    Part("copies", _copies, 30),
    Part("speed_l16", _l16, 60),
    Part("tf32", jobs.tf32, 30, on_cpu=False),
    Part("elastic", jobs.elastic, 60, least_ranks=2),
    Part("all_reduce", _all_reduce, 30, least_ranks=2),
    Part("speed_h14", _h14, 60),
    Part("other_layouts", jobs.other_layouts, 120),
)
