"""Probes of one node that need no peers and no torch: GPUs, memory, space, the shared folder, shards, the clock."""

from __future__ import annotations

import os
import random
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.data.storage.index import ShardTable
from pretrain.errors import UserError

GREEN, AMBER, RED = "green", "amber", "red"
LEVELS = (GREEN, AMBER, RED)
FIRST_LIGHT = "vit-pretrain first light 1"  # format of the file that doctor writes and report shows
GIB = 2**30
DRIVER_TIMEOUT_S = 60.0
SHARDS_TO_OPEN = 4
READ_BYTES = 1 << 20
SHARED_WAIT_S = 10.0  # a network file system may show a new file late
LARGEST_SKEW_S = 2.0
ADAPTERS = Path("/sys/class/infiniband")
DRIVER = Path("/proc/driver/nvidia")
PEER_MEMORY = Path("/sys/module/nvidia_peermem")
SMALLEST_SHARED_MEMORY_GIB = 1.0  # data processes pass their batches through it


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        probe: its name, such as ``gpus``.
        level: green; amber: it can run, but not as it should; red: it cannot.
        text: what was found, with figures and units.
        remedy: how to fix it, where it is not green.
        values: the figures, for comparing nodes.
        host: the node that it was found on.
    """

    probe: str
    level: str
    text: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host}: {self.probe}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Expected:
    """The requirements of a job on each node.

    Attributes:
        gpus: GPUs that the job uses on the node; 0: it trains on CPUs.
        memory_gib: free memory of the node.
        run: the run folder, on a file system that all nodes share.
        space_gib: free space there.
        token: content of ``run/preflight/token``, written by the first node; "" if there is none.
        shards: folders with shards.
    """

    gpus: int
    memory_gib: float
    run: Path
    space_gib: float
    token: str
    shards: tuple[Path, ...]


def probe_node(expected: Expected) -> list[Finding]:
    """Runs every check of this node."""
    questions: list[Callable[[], Finding]] = [
        lambda: gpus(expected.gpus),
        lambda: memory(expected.memory_gib),
        shared_memory,
        locked_memory,
        infiniband,
        lambda: space(expected.run, expected.space_gib),
        lambda: shared_folder(expected.run, expected.token),
        lambda: clock(expected.run),
        *[lambda folder=folder: shards(folder) for folder in expected.shards],
    ]
    return [question() for question in questions]


def gpus(expected: int) -> Finding:
    """The GPUs that the driver shows: enough of them, of one kind, none with an error."""
    if expected == 0:
        return Finding("gpus", GREEN, "none needed, the job trains on CPUs", values={"count": 0, "kind": "cpu"})
    remedy = "exclude the node, and tell the administrator"
    if shutil.which("nvidia-smi") is None:
        return Finding("gpus", RED, f"{expected} GPUs needed, but there is no nvidia-smi (no driver)", remedy)
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Finding("gpus", RED, f"nvidia-smi does not answer in {DRIVER_TIMEOUT_S:.0f} s", remedy)
    if done.returncode:
        return Finding("gpus", RED, f"nvidia-smi fails: {(done.stderr or done.stdout).strip()[:200]}", remedy)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    kinds = Counter(f"{row[0]} {row[1]} MiB" for row in rows if len(row) == 3)
    kind = ", ".join(f"{count} × {name}" for name, count in kinds.items()) or "none"
    values = {"count": sum(kinds.values()), "kind": next(iter(kinds), "none")}
    if values["count"] < expected:
        return Finding("gpus", RED, f"{expected} GPUs needed, the driver shows {kind}", remedy, values)
    if len(kinds) > 1:
        return Finding("gpus", RED, f"GPUs of several kinds: {kind}", remedy, values)
    used = max(int(row[2]) for row in rows if len(row) == 3)
    if used > 2048:  # a context of the driver takes some hundred MiB
        text = f"{kind}, but {used} MiB of one are in use by somebody else"
        return Finding("gpus", AMBER, text, "look for a leftover process", values)
    return Finding("gpus", GREEN, kind, values=values)


def memory(needed_gib: float) -> Finding:
    """Memory that new processes can allocate."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024 / GIB
    values = {"free_gib": round(free, 1)}
    if free < needed_gib:
        text = f"{free:.1f} GiB of memory free, {needed_gib:.1f} GiB needed"
        return Finding("memory", RED, text, "ask for the whole node (--exclusive --mem=0), or exclude it", values)
    return Finding("memory", GREEN, f"{free:.1f} GiB free", values=values)


def shared_memory() -> Finding:
    """/dev/shm, through which data processes pass their batches (a container often has only 64 MiB)."""
    try:
        free = shutil.disk_usage("/dev/shm").free / GIB
    except OSError as error:
        return Finding("shared_memory", AMBER, f"/dev/shm: {error.strerror}", "mount it, or use cluster.num_workers: 0")
    values = {"free_gib": round(free, 2)}
    if free < SMALLEST_SHARED_MEMORY_GIB:
        remedy = "give the container more (--shm-size), or use cluster.num_workers: 0"
        return Finding("shared_memory", AMBER, f"{free:.2f} GiB free in /dev/shm", remedy, values)
    return Finding("shared_memory", GREEN, f"{free:.1f} GiB free in /dev/shm", values=values)


def locked_memory() -> Finding:
    """How much memory a process may lock: an InfiniBand adapter reads and writes only locked memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked_memory", GREEN, "unlimited (ulimit -l)", values={"mib": None})
    values, text = {"mib": soft >> 20}, f"{soft / 2**20:,.1f} MiB may be locked (ulimit -l)"
    if not _adapters():
        return Finding("locked_memory", GREEN, f"{text}; no InfiniBand adapter needs more", values=values)
    remedy = "ulimit -l unlimited; under Slurm LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK"
    return Finding("locked_memory", AMBER, f"{text}, too little for NCCL over InfiniBand", remedy, values)


def infiniband() -> Finding:
    """The ports of the InfiniBand (or RoCE) adapters, and whether GPUs can use them directly."""
    ports = [(port, _line(port / "state"), _line(port / "rate")) for one in _adapters() for port in _ports(one)]
    if not ports:
        return Finding("infiniband", GREEN, "no adapter: nodes exchange over Ethernet, if at all")
    down = [f"{port.parts[-3]}:{port.name}" for port, state, _ in ports if not state.endswith("ACTIVE")]
    rates = Counter(rate for _, state, rate in ports if state.endswith("ACTIVE"))
    text = ", ".join(f"{count} × {rate}" for rate, count in rates.items()) or "no port is active"
    values = {"ports": dict(rates), "down": down}
    if not rates or len(rates) > 1:
        return Finding("infiniband", AMBER, f"{text}; down: {', '.join(down) or 'none'}", "see ibstat", values)
    if DRIVER.exists() and not PEER_MEMORY.exists():
        remedy = "modprobe nvidia_peermem (as administrator), or NCCL copies through the host"
        return Finding("infiniband", AMBER, f"{text}, but GPUs cannot use it directly", remedy, values)
    return Finding("infiniband", GREEN, text, values=values)


def _adapters() -> list[Path]:
    return sorted(ADAPTERS.iterdir()) if ADAPTERS.is_dir() else []


def _ports(adapter: Path) -> list[Path]:
    return sorted((adapter / "ports").iterdir())


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def space(folder: Path, needed_gib: float) -> Finding:
    """Free space in the folder for checkpoints, and whether a file can be written there."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing).free / GIB
    except OSError as error:
        return Finding("space", RED, f"{existing} cannot be written: {error.strerror}", "choose another output_dir")
    values = {"free_gib": round(free, 1)}
    if free < needed_gib:
        text = f"{free:.1f} GiB free in {existing}, {needed_gib:.1f} GiB needed for checkpoints"
        return Finding("space", RED, text, "free space, or choose another output_dir", values)
    return Finding("space", GREEN, f"{free:.1f} GiB free in {existing}", values=values)


def token_path(run: Path) -> Path:
    """The file by which nodes see that they share the run folder."""
    return run / "preflight" / "token"


def shared_folder(run: Path, token: str) -> Finding:
    """Whether this node sees the file that the first one wrote."""
    if not token:
        return Finding("shared_folder", GREEN, "nobody else to share with")
    deadline = time.monotonic() + SHARED_WAIT_S
    while time.monotonic() < deadline:
        try:
            if token_path(run).read_text() == token:
                return Finding("shared_folder", GREEN, f"{run} is the first node's")
        except OSError:
            pass
        time.sleep(0.2)
    text = f"{run.resolve()} is not the folder that the first node sees"
    return Finding("shared_folder", RED, text, "output_dir must be on a file system that all nodes share")


def clock(folder: Path) -> Finding:
    """Seconds between this node's clock and the file server's, by the time stamp of a new file."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing) as file:
            before = time.time()
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
            stamp, after = os.stat(file.name).st_mtime, time.time()
    except OSError as error:
        return Finding("clock", AMBER, f"not measured, {existing} cannot be written: {error.strerror}")
    skew = max(before - stamp, stamp - after, 0.0)
    values = {"skew_s": round(skew, 3)}
    if skew > LARGEST_SKEW_S:
        text = f"the clock is {skew:.1f} s away from the file server's"
        return Finding(
            "clock", RED, text, "synchronise it (chrony, ntpd): records of several nodes compare times", values
        )
    return Finding("clock", GREEN, f"within {skew:.2f} s of the file server's", values=values)


def shards(folder: Path) -> Finding:
    """Opens the index and a few shards, different ones on each node."""
    try:
        table = ShardTable.load(folder)
    except UserError as error:
        return Finding("shards", RED, str(error), "see data.shards")
    rows = [table.rows[index] for index in {0, len(table.rows) - 1}]
    rows += random.Random(socket.gethostname()).sample(table.rows, min(SHARDS_TO_OPEN, len(table.rows)))
    started, read = time.monotonic(), 0
    for row in dict.fromkeys(rows):
        path = folder / row.name
        try:
            with open(path, "rb") as file:
                read += len(file.read(READ_BYTES))
            size = path.stat().st_size
        except OSError as error:
            return Finding("shards", RED, f"{path}: {error.strerror}", "mount the data set on this node, or exclude it")
        if size != row.num_bytes:
            text = f"{path} has {size} bytes, but its index has {row.num_bytes}"
            return Finding("shards", RED, text, "copy the shard again")
    rate = read / max(1e-9, time.monotonic() - started) / 1e6
    values = {"mb_per_s": round(rate, 1)}
    return Finding("shards", GREEN, f"{folder}: {len(set(rows))} opened, {rate:,.0f} MB/s", values=values)
