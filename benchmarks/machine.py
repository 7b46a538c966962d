"""The machine of a benchmark, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def machine() -> str:
    """Processor, cores, memory and GPUs, in words."""
    gib = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} × {_processor()}, {gib:.0f} GiB, {_gpus() or 'no GPU'}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> str:
    """The GPUs that the driver names, without importing torch."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{len(names)} × {names[0]}" if names else ""
