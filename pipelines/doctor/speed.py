"""Probes of speed: disk, memory, matrix products and an all-reduce, against the known rates of the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pretrain.config.devices import Device, device_reported_as, load_devices

DISK_BYTES = 128 << 20
MEMORY_BYTES = 256 << 20
SLOW_DISK_MB_S = 100.0
# Shares of the makers' rates. Large matrix products and collectives reach most of them; below AMBER something is odd,
# below RED it is broken (throttled, shared, or the wrong link).
GEMM_LEVELS = (0.6, 0.3)
MEMORY_LEVELS = (0.6, 0.3)
LINK_LEVELS = (0.4, 0.1)
ALL_REDUCE_TIMEOUT_S = 300.0
CPU_RANKS = 2


def disk(folder: Path) -> Finding:
    """Writes and syncs a file as a checkpoint does."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    block = os.urandom(1 << 20)
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            started = time.perf_counter()
            for _ in range(DISK_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = DISK_BYTES / (time.perf_counter() - started) / 1e6
    except OSError as error:
        return Finding("disk", RED, f"{existing} cannot be written: {error.strerror}", "choose another folder (--run)")
    values = {"write_mb_per_s": round(rate, 1)}
    text = f"{rate:,.0f} MB/s written and synced in {existing}"
    if rate < SLOW_DISK_MB_S:
        return Finding("disk", AMBER, text, "checkpoints will take long; choose a faster file system", values)
    return Finding("disk", GREEN, text, values=values)


def compute() -> list[Finding]:
    """Matrix products and memory of each device; of the CPU where there is no GPU."""
    import torch

    from pipelines.nodes.compute import gemm_rate

    table, findings = load_devices(), []
    for device in _devices():
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        known = device_reported_as(name, table)
        label = f"{device} ({name})" if device.type == "cuda" else "cpu"
        findings.append(_gemm(label, gemm_rate(device).sustained, known))
        findings.append(_memory(label, _copy_gb_s(device), known))
    return findings


def _devices() -> list:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]


def _gemm(label: str, rate: float, known: Device | None) -> Finding:
    kind = "bf16" if label != "cpu" else "fp32"
    text = f"{label}: {rate:,.3g} TFLOP/s in a {kind} matrix product"
    return against(
        "gemm", text, rate, known.bf16_tflops if known else None, GEMM_LEVELS, "look for a throttled or shared GPU"
    )


def _memory(label: str, rate: float, known: Device | None) -> Finding:
    text = f"{label}: {rate:,.4g} GB/s reading and writing"
    remedy = "look for another process on the device"
    return against("memory_bandwidth", text, rate, known.memory_gb_s if known else None, MEMORY_LEVELS, remedy)


def against(
    probe: str, text: str, rate: float, known: float | None, levels: tuple[float, float], remedy: str
) -> Finding:
    """Green, amber or red by the share of a known rate; green where none is known."""
    values = {"rate": rate, "known": known}
    if known is None:
        return Finding(probe, GREEN, f"{text} (no known rate to compare with)", values=values)
    share = rate / known
    text = f"{text}, {share:.0%} of the maker's {known:,.4g}"
    level = GREEN if share >= levels[0] else AMBER if share >= levels[1] else RED
    return Finding(probe, level, text, "" if level == GREEN else remedy, values)


def _copy_gb_s(device) -> float:  # type: ignore[no-untyped-def]
    import torch

    source = torch.ones(MEMORY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * MEMORY_BYTES / best / 1e9


def all_reduce() -> Finding:
    """An all-reduce over the GPUs of this node (NCCL), or over two processes (gloo), started as a run is."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 1:
        return Finding("all_reduce", GREEN, "one GPU: nobody to exchange with")
    ranks = gpus or CPU_RANKS
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += ["-m", "pipelines.nodes.compute"]
    remedy = "run it with NCCL_DEBUG=INFO, and look at nvidia-smi topo -m"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ALL_REDUCE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("all_reduce", RED, f"{ranks} ranks hang in it", remedy)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        return Finding("all_reduce", RED, f"fails on {ranks} ranks: {last[:200]}", remedy)
    rate = json.loads(done.stdout.strip().splitlines()[-1])["gb_per_s"]
    sent = rate * 2 * (ranks - 1) / ranks  # bytes sent by each device: links are rated by this
    known = device_reported_as(torch.cuda.get_device_name(0), load_devices()) if gpus else None
    text = f"{ranks} {'GPUs' if gpus else 'processes'}: {sent:,.3g} GB/s sent by each"
    return against("all_reduce", text, sent, known.link_gb_s if known else None, LINK_LEVELS, remedy)


def links() -> Finding:
    """How the GPUs of this node are connected, as reported by the driver."""
    try:
        done = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("links", GREEN, "no GPU driver to ask")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("GPU")]
    kinds = sorted({word for row in rows for word in row[1 : 1 + len(rows)]} - {"X"})
    if len(rows) < 2:
        return Finding("links", GREEN, f"{len(rows)} GPU: none needed")
    if not any(kind.startswith("NV") for kind in kinds):
        return Finding("links", AMBER, f"no NVLink: {', '.join(kinds)}", "prefer ZeRO-1 with few, large micro-steps")
    return Finding("links", GREEN, ", ".join(kinds), values={"kinds": kinds})
