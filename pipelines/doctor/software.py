"""Probes of what is installed, and of limits: Python, torch, CUDA, NCCL, DeepSpeed, decoding, files, Slurm."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from importlib import metadata

from pipelines.nodes.checks import AMBER, GREEN, RED, Finding
from pretrain.check.versions import check_library, outside_range
from pretrain.errors import SetupError

OLDEST_PYTHON = (3, 10)
FEWEST_FILES = 4096  # shards, sockets and shared batches of a rank and its data processes
TIMEOUT_S = 120.0


def python() -> Finding:
    """The interpreter."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", RED, f"{text}; {wanted} or later is needed", "make another environment with setup.sh")
    return Finding("python", GREEN, text)


def torch() -> Finding:
    """torch, what it was built for, and whether that works here."""
    try:
        import torch
    except ImportError as error:
        return Finding("torch", RED, f"cannot be imported: {error}", "make test, or pip install -e .")
    built, text = torch.version.cuda or torch.version.hip, f"torch {torch.__version__}"
    values = {"version": torch.__version__, "cuda": built or ""}
    if torch.cuda.is_available():
        from torch.cuda.nccl import version as nccl_version

        nccl = ".".join(map(str, nccl_version()))
        return Finding("torch", GREEN, f"{text}, CUDA {built}, NCCL {nccl}", values={**values, "nccl": nccl})
    if shutil.which("nvidia-smi") is None:
        return Finding("torch", GREEN, f"{text}, no GPU driver here: it computes on the CPU", values=values)
    remedy = "install a torch built for this driver's CUDA (or newer drivers); see CUDA_VISIBLE_DEVICES too"
    return Finding("torch", RED, f"{text}, built for CUDA {built}, does not see the GPUs of the driver", remedy, values)


def deepspeed() -> Finding:
    """DeepSpeed; asks it in a separate process which of its compiled operations could work."""
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return Finding("deepspeed", RED, "not installed", "pip install -e . (or use cluster.backend: accelerate)")
    try:
        check_library("deepspeed")
    except SetupError as error:
        return Finding("deepspeed", RED, str(error), values={"version": version})
    code = (
        "import deepspeed.ops.op_builder as b; from deepspeed.ops.op_builder.all_ops import ALL_OPS; "
        "print(' '.join(sorted(n for n, o in ALL_OPS.items() if o.is_compatible(verbose=False))))"
    )
    asked = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("deepspeed", AMBER, f"{version}, does not say in {TIMEOUT_S:.0f} s which operations it has")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        return Finding("deepspeed", RED, f"{version} cannot be imported: {last}", "reinstall it beside this torch")
    operations = (done.stdout.strip().splitlines() or [""])[-1].split()
    text = f"{version}; could compile here: {', '.join(operations) or 'nothing'} (training needs none of them)"
    return Finding("deepspeed", GREEN, text, values={"version": version, "operations": operations})


def versions() -> Finding:
    """Every other dependency against the range that the project was tested with."""
    try:
        wrong = [package for package in outside_range() if package.name != "deepspeed"]
    except SetupError as error:
        return Finding("versions", AMBER, str(error))
    if wrong:
        problems, remedies = zip(*((package.problem, package.remedy) for package in wrong), strict=True)
        return Finding("versions", AMBER, "; ".join(problems), "; ".join(remedies))
    return Finding("versions", GREEN, "every package is of a version that was tested")


def decoding() -> Finding:
    """The compiled parts of the loader: without them images are decoded correctly, but more slowly."""
    from pretrain.data.images import restarts
    from pretrain.data.storage import checksums

    parts = {"the C extension for restart markers": restarts.available(), "the package isal": checksums.IS_FAST}
    missing = [name for name, is_there in parts.items() if not is_there]
    if missing:
        text = f"without {' and '.join(missing)} images are read correctly, but more slowly"
        return Finding("decoding", AMBER, text, "run make, or pip install -e . (needs a C compiler)")
    return Finding("decoding", GREEN, "restart markers by the C extension, checksums by ISA-L")


def open_files() -> Finding:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FEWEST_FILES:
        remedy = f"ulimit -n {FEWEST_FILES} before the start" + ("" if hard >= FEWEST_FILES else " (as administrator)")
        return Finding("open_files", AMBER, f"{soft} files may be open, {FEWEST_FILES} are better", remedy)
    return Finding("open_files", GREEN, f"{soft:,} files may be open", values={"soft": soft})


def slurm() -> Finding:
    """Whether Slurm is installed and its controller answers."""
    if shutil.which("sinfo") is None:
        return Finding("slurm", GREEN, "none here: runs are started by deepspeed, torchrun or accelerate")
    try:
        done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=TIMEOUT_S)
        nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("slurm", AMBER, "sinfo does not answer", "ask the administrator about slurmctld")
    if nodes.returncode:
        problem = (nodes.stderr.strip().splitlines() or ["?"])[0][:200]
        name = done.stdout.strip() or "Slurm"
        return Finding(
            "slurm",
            AMBER,
            f"{name}, whose controller does not answer: {problem}",
            "ask the administrator about slurmctld",
        )
    return Finding("slurm", GREEN, f"{done.stdout.strip()}, {len(nodes.stdout.split())} nodes")
